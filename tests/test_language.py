"""The language of docstrings, comments and documents: plain words, and imperative first lines."""

import ast
import io
import re
import subprocess
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Words that are archaic or must be read twice, and what to write instead.
INSTEAD = {
    r"foretell\w*|foretold": "predict, forecast",
    r"(tell|tells|told|telling)( \w+){0,3} apart": "distinguish",
    r"nobody|no one": "no client, no contributor",
    r"somebody|someone": "a client, a contributor",
    r"everybody|everyone": "all clients",
    r"anybody|anyone": "any client, other clients",
    r"what (becomes|became|has become) of": "the result of",
    r"to be had|(can|cannot|could) be had": "is available",
    r"beside": "next to, compared with, in addition to",
    r"of one's own": "custom",
    r"as it (was|were)|as they were": "unchanged",
    r"lest": "so that ... not",
    r"hands? back|handed back": "return",
    r"comes? to be|came to be": "is",
    r"whatsoever|wherein|whereof|thereof|hitherto|hence(?=forth)": "(leave it out)",
    r"the same at all": "does not depend on",
    r"(is|are) not told from": "does not differ significantly from",
    r"stands? for itself": "separate, single",
    r"anew": "again, newly",
    r"(goes|gone|going|go|went) on (with|to|until|from)": "continue",
    r"of (its|their|his|her|our) own(?= ?([.,;:)]|$))": "separate",
    r"whoever|whosoever": "any client, all users",
    r"spoilt|torn": "damaged",
    r"so many": "a number of",
}
BRITISH = (
    r"\w*(?:colour|behaviour|favour|neighbour|honour|rigour)\w*|\w*(?:model|label|travel|signal)l"
    r"(?:ed|ing)|centred?|learnt|whilst|amongst|judgement|artefacts?|licence|"
    r"\w*(?:normal|initial|general|standard|minim|maxim|optim|regular|recogn|serial|vector|linear|"
    r"quant|penal|token|memor|organ|summar|random|symmetr|factor|stabil|parametr|visual|special|util)"
    r"is(?:e[srd]?|ing|ations?)"
)
INSTEAD[BRITISH] = "American spelling"
ANY = re.compile("|".join(rf"(?P<g{i}>\b(?:{w})\b)" for i, w in enumerate(INSTEAD)), re.IGNORECASE)

# Quotations may use any word.
QUOTED: tuple[str, ...] = ()

# Identifiers in backticks and in lists of arguments are no prose.
IDENTIFIERS = re.compile(r"`[^`]*`|(?m:^\s*\w+:(?=\s))")

GENERATED = re.compile(r"<!-- (\S+): generated -->.*?<!-- end -->", re.DOTALL)
CODE_BLOCK = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
NO_VERB = re.compile(r"(Whether|What|Who|Whose|How|Where|Why|The|A|An|If|Of|All|Every|Each)\b")


def tracked(*patterns: str) -> list[str]:
    command = ["git", "ls-files", "-z", *patterns]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


SOURCES = tracked("*.py", "*.pyi")
DOCUMENTS = [name for name in tracked("*.md") if name != "CHANGELOG.md"]


def described(tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in ast.walk(tree):
        if isinstance(node, kinds) and (text := ast.get_docstring(node)):
            yield node, text


def prose_of(source: str) -> str:
    """Return the docstrings, strings that stand alone, and comments of a module."""
    tree = ast.parse(source)
    alone = [
        node.value.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    ]
    comments = []
    last = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            text = token.string.lstrip("#: ")
            if token.start[0] == last + 1 and comments:
                comments[-1] += " " + text
            else:
                comments.append(text)
            last = token.start[0]
    return "\n\n".join(alone + comments)


def document(name: str) -> str:
    text = (ROOT / name).read_text(encoding="utf-8")
    return CODE_BLOCK.sub("", GENERATED.sub("", text))


def found_in(text: str) -> list[str]:
    text = " ".join(IDENTIFIERS.sub("", text).split())
    for quotation in QUOTED:
        text = text.replace(quotation, "")
    found = []
    for match in ANY.finditer(text):
        instead = list(INSTEAD.values())[int(match.lastgroup[1:])]
        around = text[max(0, match.start() - 40) : match.end() + 30]
        found.append(f"'{match.group()}' in '...{around}...': write {instead}")
    return found


def hits(names: list[str], prose: Callable[[str], str]) -> list[str]:
    return [f"{name}: {hit}" for name in names for hit in found_in(prose(name))]


@pytest.mark.slow
def test_sources_are_in_plain_words():
    assert not hits(SOURCES, lambda name: prose_of((ROOT / name).read_text(encoding="utf-8")))


def test_documents_are_in_plain_words():
    assert DOCUMENTS
    assert not hits(DOCUMENTS, document)


def test_functions_are_described_by_what_they_do():
    statements = []
    for name in SOURCES:
        if name.startswith(("tests/", "benchmarks/", "notebooks/")):
            continue
        for node, text in described(ast.parse((ROOT / name).read_text(encoding="utf-8"))):
            is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            if is_function and not is_property(node) and NO_VERB.match(text):
                statements.append(f"{name}: {node.name}: {text.splitlines()[0]}")
    assert not statements


def is_property(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any("property" in ast.unparse(decorator) for decorator in node.decorator_list)


@pytest.mark.parametrize(
    "text",
    [
        "What becomes of a direction that nobody carries.",
        "Rules that are told\n    apart by name",
        "An energy that the theory foretold.",
        "It lies beside the report.",
        "Normalised weights and the colours of neighbours.",
    ],
)
def test_old_words_are_found(text):
    assert found_in(text)


def test_code_and_plain_words_pass():
    assert not found_in("The value of `nobody` besides the others; next to it the best result.")


def test_generated_blocks_and_code_of_documents_are_left_out():
    text = "<!-- table: generated -->\nnobody\n<!-- end -->\n```sh\necho beside\n```\nplain\n"
    assert not found_in(CODE_BLOCK.sub("", GENERATED.sub("", text)))

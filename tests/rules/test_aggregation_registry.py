"""Rules by name: aliases, options in the name, and rules of other packages."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import pytest
from promises import Promise
from simulator_cases import ALL_RULES, assert_close, random_factors

from fedlora_sim import aggregate, rule_names, rules
from fedlora_sim.errors import InputError
from fedlora_sim.rules import (
    AggregationRule,
    FedAvg,
    FedEx,
    HetLoRA,
    RaFLoRA,
    get_rule,
    register,
    registry,
    rule_aliases,
)

OWN = tuple(
    made
    for made in (getattr(rules, name) for name in dir(rules))
    if isinstance(made, type) and issubclass(made, AggregationRule) and made is not AggregationRule
)
"""The classes of rules in `fedlora_sim.rules`."""

OUTSIDE = '''
from dataclasses import dataclass
from typing import ClassVar

from fedlora_sim.rules import AggregationRule
from fedlora_sim.rules.base import data_shares


@dataclass(frozen=True)
class Damped(AggregationRule):
    """FedAvg times a number."""

    damping: float = 0.5
    name: ClassVar[str] = "Damped"
    source: ClassVar[str] = "a test"

    def direction_weights(self, weights, members, norms=None):
        return self.damping * data_shares(weights, members)

    def multiplier(self, coverage):
        return self.damping * coverage
'''

HALF_BROKEN = """

class Taken(Damped):
    name = "raflora"


class Silent:
    name, source, properties = "silent", "a test", None

    def step(self, updates, weights, context, state):
        raise NotImplementedError
"""


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    """Restore the registry after a test."""
    monkeypatch.setattr(registry, "_RULES", {rule.name: rule for rule in OWN})
    monkeypatch.setattr(registry, "_ALIASES", dict(registry._ALIASES))
    monkeypatch.setattr(registry, "_loaded", True)


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return a function that installs a package: a module and its .dist-info."""

    def make(entry_points, name="outside_rules", source=OUTSIDE):
        (tmp_path / f"{name}.py").write_text(source)
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [f"{point} = {value}" for point, value in entry_points.items()]
        (info / "entry_points.txt").write_text("\n".join([f"[{registry.ENTRY_POINTS}]", *lines]))
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setattr(registry, "_loaded", False)

    return make


def test_every_rule_has_one_name_and_is_found_by_it():
    assert rule_names() == tuple(sorted(rule.name for rule in OWN))
    assert {rule.partition(":")[0] for rule in ALL_RULES} == set(rule_names())
    for rule in OWN:
        assert get_rule(rule.name) == rule()
        assert rule.source


def test_rules_have_aliases():
    assert rule_aliases() == {
        **dict.fromkeys(("flexlora", "hlora", "ilora"), "fedavg"),
        **dict.fromkeys(("fedilora", "prelort", "replicate"), "rbla"),
        "fedit": "zero_pad",
        "rb_lora": "raflora",
    }
    for alias, name in rule_aliases().items():
        assert get_rule(alias) == get_rule(name)
        assert get_rule(alias).label == name
        assert alias not in rule_names()


@pytest.mark.parametrize("name", ["RaFLoRA", " raflora ", "RAFLORA", "FedIT", "Flora", "HETLORA"])
def test_case_does_not_matter(name):
    assert get_rule(name) == get_rule(name.strip().lower())


@pytest.mark.parametrize("name", [*ALL_RULES, "fedex:residual_rank=3"])
def test_labels_are_read_back(name):
    rule = get_rule(name)
    assert rule.label == name
    assert get_rule(rule.label) == rule


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("raflora:canonicalize=true", RaFLoRA(canonicalize=True)),
        ("raflora: canonicalize = true ", RaFLoRA(canonicalize=True)),
        ("raflora:canonicalize=false", RaFLoRA()),
        ("fedex:residual_rank=4", FedEx(residual_rank=4)),
        ("fedex:residual_rank=4.0", FedEx(residual_rank=4)),
        ("HetLoRA:data_weighted=true", HetLoRA(data_weighted=True)),
    ],
)
def test_options_are_part_of_the_name(name, rule):
    assert get_rule(name) == rule
    assert repr(get_rule(name)) == repr(rule)


def test_options_may_be_keywords_and_a_rule_that_is_made_has_its_own():
    assert get_rule("raflora", canonicalize=True) == get_rule("raflora:canonicalize=true")
    own = RaFLoRA(canonicalize=True)
    assert get_rule(own) is own
    with pytest.raises(InputError, match=r"options=.*rule object"):
        get_rule(own, canonicalize=False)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raflor", "rule='raflor'.*'raflora'"),
        ("flexlor", "rule='flexlor'.*'flexlora'"),
        ("", "rule=''"),
        (None, "rule=None"),
        (FedAvg, "rule="),
        ("raflora:canonicalise=true", "option of rule 'raflora'='canonicalise'.*'canonicalize'"),
        ("raflora:Canonicalize=true", "'canonicalize', in lower case"),
        ("raflora:canonicalize", r"rule option='canonicalize'.*option=value"),
        ("raflora:", "rule option=''"),
        ("raflora:=true", "rule option='=true'"),
        ("raflora:canonicalize=yes", "canonicalize='yes'"),
        ("raflora:canonicalize=1", "canonicalize=1"),
        ("raflora:canonicalize=", "canonicalize=''"),
        ("fedavg:canonicalize=true", "canonicalize=True"),
        ("fedex:residual_rank=0", r"residual_rank=0.*at least 1"),
        ("fedex:residual_rank=1.5", r"residual_rank=1\.5"),
        ("fedex:residual_rank=true", "residual_rank=True"),
        ("fedex:residual_rank=few", "residual_rank='few'"),
        ("hetlora:data_weighted=0", "data_weighted=0"),
    ],
)
def test_unreadable_rules_are_named(name, message):
    with pytest.raises(InputError, match=message):
        get_rule(name)


def named(name):
    """Return a new rule, a copy of FedAvg."""

    @dataclass(frozen=True)
    class New(FedAvg):
        pass

    New.name = name
    return New


@pytest.mark.parametrize("name", ["fedavg", "FedAvg", "flexlora"])
def test_a_name_is_taken_once(name):
    with pytest.raises(InputError, match=f"name='{name.lower()}'.*other than that of FedAvg"):
        register(named(name))
    with pytest.raises(InputError, match=f"name='{name.lower()}'"):
        register(aliases=("mine", name))(named("new"))
    assert "new" not in rule_names()
    assert "mine" not in rule_aliases()


class Nameless(FedAvg):
    name = ""


class Sourceless(FedAvg):
    name, source = "sourceless", None


class Unfinished(AggregationRule):
    name, source = "unfinished", "nowhere"


class Separated(FedAvg):
    name = "a:b"


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Nameless, "Nameless.name=''"),
        (Sourceless, "Sourceless.source=None"),
        (Unfinished, r"rule='Unfinished': .*direction_weights, multiplier"),
        (Separated, r"Separated.name='a:b': .*without ':'"),
        (int, "rule='int'"),
    ],
)
def test_a_rule_that_could_not_be_listed_or_run_is_refused(rule, message):
    with pytest.raises(InputError, match=message):
        register(rule)


def test_none_is_read_as_none():
    assert get_rule("fedex:residual_rank=none") == get_rule("fedex")


def test_a_notebook_cell_may_be_run_again():
    first = register(named("Again"))
    second = register(named("Again"))
    assert first is not second
    assert isinstance(get_rule("again"), second)


def test_the_decorator_makes_a_rule_known():
    new = register(aliases=("Newer",))(named("New"))
    assert "new" in rule_names()
    assert isinstance(get_rule("NEW"), new)
    assert isinstance(get_rule("newer"), new)
    assert isinstance(register(named("newest")), type)


def test_an_installed_package_brings_a_rule(install):
    install({"damped": "outside_rules:Damped"})
    assert "damped" in rule_names()
    assert isinstance(get_rule("damped"), AggregationRule)
    update = random_factors(np.random.default_rng(0), 5, 4, 2)
    result = aggregate([update], None, "damped:damping=0.25")
    assert_close(result.delta(), update.delta() / 4, "factorization")
    assert get_rule("damped:damping=0.25").label == "Damped:damping=0.25"


def test_a_module_may_use_the_decorator_as_well(install):
    source = OUTSIDE.replace("@dataclass", "@register\n@dataclass").replace(
        "import AggregationRule\n", "import AggregationRule, register\n"
    )
    install({"damped": "decorated_rules:Damped"}, "decorated_rules", source)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "damped" in rule_names()


ENTRY_POINTS = (
    "An entry point that fails to load, raises or calls `sys.exit` is named in a warning and left "
    "out; the other rules work."
)


def test_a_broken_entry_point_is_named_and_the_others_work(install, promise: Promise):
    count = promise(ENTRY_POINTS, "entry points")
    broken = {
        "absent": "no_such_module:Rule",
        "nameless": "half_broken:NoSuchRule",
        "no_rule": "half_broken:dataclass",
        "taken": "half_broken:Taken",
        "silent": "half_broken:Silent",
        "damped": "half_broken:Damped",
    }
    install(broken, "half_broken", OUTSIDE + HALF_BROKEN)
    with pytest.warns(UserWarning, match=registry.ENTRY_POINTS) as caught:
        names = rule_names()
    told = sorted(str(warning.message).split()[2] for warning in caught)
    assert told == ["absent", "nameless", "no_rule", "silent", "taken"]
    assert names == tuple(sorted(("damped", *(rule.name for rule in OWN))))
    assert get_rule("raflora") == RaFLoRA()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the warning is given once
        assert rule_names() == names
    count(len(told))


@pytest.mark.parametrize(
    ("rule", "linear"),
    [("fedavg", True), ("raflora", True), ("ffa", True), ("zero_pad", False), ("hetlora", False)],
)
def test_linear_rules_declare_it(rule, linear):
    assert get_rule(rule).is_linear == linear


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise RuntimeError('no\\x1b[2J good')", r"RuntimeError: no\\x1b\[2J good"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("raise SystemExit", "SystemExit: "),
        ("1 / 0", "ZeroDivisionError"),
        ("def f(: pass", "SyntaxError"),
        ("Broken = 3", "a class of rules"),
    ],
)
def test_an_entry_point_that_fails_is_named_and_left_out(install, source, reason, promise: Promise):
    count = promise(ENTRY_POINTS, "entry points")
    name = f"failing_{abs(hash(source))}"
    install({"broken": f"{name}:Broken"}, name, source)
    with pytest.warns(UserWarning, match=rf"entry point broken = {name}:Broken.*{reason}"):
        assert "fedavg" in rule_names()
    assert isinstance(get_rule("fedavg"), AggregationRule)
    count()

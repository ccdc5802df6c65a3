"""Machine-checked proofs of the theory, in Coq: one `.v` file per section.

`fedlora-sim prove` compiles them. Where a theorem has a derived closed form, it states it by the
definition in `Derived.v`, which is written from the sympy derivations; `Instances.v` and
`Certificates.v` hold numbers.
"""

from analysis.proofs.coq import INSTALL as INSTALL
from analysis.proofs.coq import NoCoqError as NoCoqError
from analysis.proofs.coq import Proof as Proof
from analysis.proofs.coq import all_names as all_names
from analysis.proofs.coq import prove as prove
from analysis.proofs.theorems import THEOREMS as THEOREMS
from analysis.proofs.theorems import Theorem as Theorem
from analysis.proofs.theorems import theorems_of as theorems_of

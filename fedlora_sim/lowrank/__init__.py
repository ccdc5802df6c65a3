"""Linear algebra of low-rank products: the SVD of `sum_k B_k A_k` from a small core."""

from fedlora_sim.lowrank.dense import fix_signs as fix_signs
from fedlora_sim.lowrank.dense import sign_fixed_svd as sign_fixed_svd
from fedlora_sim.lowrank.dtypes import compute_dtype as compute_dtype
from fedlora_sim.lowrank.dtypes import pad_last as pad_last
from fedlora_sim.lowrank.in_range import exponent as exponent
from fedlora_sim.lowrank.in_range import is_safe as is_safe
from fedlora_sim.lowrank.in_range import largest as largest
from fedlora_sim.lowrank.in_range import times_power as times_power
from fedlora_sim.lowrank.product import LowRankProduct as LowRankProduct
from fedlora_sim.lowrank.svd import METHODS as METHODS
from fedlora_sim.lowrank.svd import low_rank_svd as low_rank_svd

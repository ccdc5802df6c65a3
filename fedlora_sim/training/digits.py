"""A real task of seconds: scikit-learn's digits, a model pretrained on one domain of it, another to adapt to.

1,797 grey 8x8 images of handwritten digits (Alpaydin and Kaynak 1998, UCI Optical Recognition of
Handwritten Digits), bundled with scikit-learn.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import lru_cache

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional

from fedlora_sim.errors import check_choice, expected
from fedlora_sim.randomness import stream
from fedlora_sim.training.transformer import TinyTransformer

SHIFTS = ("rotated", "unseen")
NUM_LAYERS = 2
TARGETS = ("attention.q_proj", "attention.v_proj", "fc1", "fc2")


@dataclass(frozen=True)
class DigitsTask:
    model: TinyTransformer
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    source_x: Tensor
    source_y: Tensor
    target_modules: tuple[str, ...]
    shift: str


PATCH=(4,4); PRE=0.4; TRAIN=0.4; EPOCHS=20; LR=3e-3; BS=32; RATIO=2

@lru_cache(maxsize=None)
def load_digits_task(seed: int, *, shift: str = "rotated", dtype=torch.float32) -> DigitsTask:
    rng = stream(seed, "digits", shift)
    bunch = load_digits()
    y = bunch.target.astype(np.int64); x = torch.as_tensor(bunch.images/16.0, dtype=dtype)
    parts=[[],[],[]]
    for c in range(10):
        idx = rng.permutation(np.flatnonzero(y==c))
        a,b = round(PRE*len(idx)), round((PRE+TRAIN)*len(idx))
        for p,q in zip(parts, np.split(idx,[a,b])): p.append(q)
    pre,tr,te = (rng.permutation(np.concatenate(p)) for p in parts)
    y=torch.as_tensor(y)
    if shift=="rotated":
        data=(x[pre],y[pre]); tx=torch.rot90(x,1,(1,2)).contiguous(); ty=y; src=te; tgt_tr=tr; tgt_te=te; nc=10
    else:
        pre_all=np.concatenate([pre,tr])
        lo=lambda i: i[(y[i]<5).numpy()]
        hi=lambda i: i[(y[i]>=5).numpy()]
        data=(x[lo(pre_all)],y[lo(pre_all)]); tx=x; ty=y%5; src=lo(te); tgt_tr=hi(pre_all); tgt_te=hi(te); nc=5
    model = pretrain(data[0],data[1],nc,rng,dtype)
    return DigitsTask(model,tx[tgt_tr],ty[tgt_tr],tx[tgt_te],ty[tgt_te],x[src],y[src],
      tuple(f"blocks.{i}.{t}" for i in range(2) for t in TARGETS),shift)

def pretrain(X,y,nc,rng,dtype):
    g=torch.Generator().manual_seed(int(rng.integers(2**31)))
    m=TinyTransformer(g,patch=PATCH,mlp_ratio=RATIO,num_classes=nc).to(dtype)
    n=len(y); nb=n//BS
    opt=torch.optim.AdamW(m.parameters(),lr=LR,weight_decay=0.05,fused=True)
    sched=torch.optim.lr_scheduler.OneCycleLR(opt,LR,total_steps=EPOCHS*nb)
    pad=functional.pad(X,(1,1,1,1))
    sh=torch.stack([pad[:,i:i+8,j:j+8] for i in range(3) for j in range(3)],1)
    for e in range(EPOCHS):
        q=torch.randperm(n,generator=g)
        s=torch.randint(9,(n,),generator=g)
        if not AUG: s[:]=4
        for i in range(nb):
            b=q[i*BS:(i+1)*BS]
            loss=functional.cross_entropy(m(sh[b,s[b]]),y[b],label_smoothing=LS); opt.zero_grad(); loss.backward(); opt.step(); sched.step()
    m.requires_grad_(False)
    return m
AUG=True; LS=0.0

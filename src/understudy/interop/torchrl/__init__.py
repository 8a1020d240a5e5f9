"""TorchRL's words: its PPO loss, and parts in a TensorDict loop of one's own, whose networks and collector stay.

The loss: `clip_ppo_loss`, `options`, `value_estimator`. Parts: `parts` (what users call), `beside` (a part, built and
saved), `policy` (the user's modules as parts see them), `rows` (batches), `actions`. Both: `modules`, `entries`.
"""

from understudy.interop.torchrl.clip_ppo_loss import ClipPPOLoss
from understudy.interop.torchrl.parts import PartLoss, RewardTransform
from understudy.interop.torchrl.policy import TensorDictPolicy

__all__ = ["ClipPPOLoss", "PartLoss", "RewardTransform", "TensorDictPolicy"]

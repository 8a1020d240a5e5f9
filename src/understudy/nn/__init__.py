"""Networks: the policy's protocol, the library's own policy, and the heads, encoders and memories it is made of."""

from understudy.nn.check_policy import check_policy
from understudy.nn.heads import ActionFamily, ActionHead, make_family, make_head
from understudy.nn.protocol import Policy, PolicyConfig, PolicyOutput
from understudy.nn.recurrence import unroll

__all__ = [
    "ActionFamily",
    "ActionHead",
    "Policy",
    "PolicyConfig",
    "PolicyOutput",
    "check_policy",
    "make_family",
    "make_head",
    "unroll",
]

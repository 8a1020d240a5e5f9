"""The library's own tasks, batched in torch: one file each, one line in `envs/makers.py`.

Importing this package registers each with Gymnasium as "understudy/<id>", one copy with numpy in and out:
`gymnasium.make("understudy.tasks:understudy/LightHouse-v0", options={"view_radius": 7})`.
"""

from understudy.envs.makers import OWN_TASKS
from understudy.tasks.registration import register_tasks

register_tasks(OWN_TASKS)

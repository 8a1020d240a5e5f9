"""Published scores of imitation learning, as their authors report them, each with its own expert's: see `SOURCES`."""

from __future__ import annotations

METHODS: dict[str, str] = {"bc": "BC", "dagger": "DAgger", "gail": "GAIL", "airl": "AIRL", "bc-gail": "BC + GAIL"}
"""Recipe -> name."""

SOURCES: dict[str, str] = {
    "imitation": "5 seeds on seals' variants of the tasks, whose episodes all last 1,000 steps and whose scores are "
    "others; about 104 expert episodes; GAIL and AIRL after 10M steps, tuned for each task "
    "(`benchmarking/baseline.csv` at commit b2e20141). The expert that DAgger asked on Hopper scored 437, those of the "
    "other methods 2631",
    "Tianshou": "GAIL: the best of a single run, 3M steps, v2 tasks (`examples/inverse/README.md`); BC: "
    "`examples/offline/README.md`. Data: D4RL's expert sets, whose scores it does not report; about 11,000, 3,600 and "
    "5,000 on HalfCheetah, Hopper and Walker2d",
}

Published = tuple[str, float, float | None]  # as printed, its mean, the expert's score (None: not reported)

PUBLISHED: dict[str, dict[tuple[str, str], Published]] = {
    "imitation": {
        ("Ant-v5", "bc"): ("1953 ± 287", 1952.6, 2408.0),
        ("Ant-v5", "dagger"): ("2321 ± 241", 2320.6, 2549.0),
        ("Ant-v5", "gail"): ("2126 ± 380", 2126.2, 2408.0),
        ("Ant-v5", "airl"): ("-110 ± 222", -110.1, 2408.0),
        ("HalfCheetah-v5", "bc"): ("3446 ± 93", 3446.0, 3465.0),
        ("HalfCheetah-v5", "dagger"): ("4172 ± 123", 4172.2, 4132.0),
        ("HalfCheetah-v5", "gail"): ("3010 ± 151", 3010.0, 3465.0),
        ("HalfCheetah-v5", "airl"): ("3444 ± 1054", 3443.9, 3465.0),
        ("Hopper-v5", "bc"): ("2243 ± 32", 2242.8, 2631.0),
        ("Hopper-v5", "dagger"): ("443 ± 36", 442.5, 437.0),
        ("Hopper-v5", "gail"): ("2671 ± 82", 2671.4, 2631.0),
        ("Hopper-v5", "airl"): ("2675 ± 72", 2675.2, 2631.0),
        ("Walker2d-v5", "bc"): ("2512 ± 61", 2512.3, 2673.0),
        ("Walker2d-v5", "dagger"): ("2669 ± 54", 2668.8, 2670.0),
        ("Walker2d-v5", "gail"): ("2643 ± 76", 2643.3, 2673.0),
        ("Walker2d-v5", "airl"): ("722 ± 436", 721.5, 2673.0),
    },
    "Tianshou": {
        ("HalfCheetah-v5", "bc"): ("11355", 11355.31, None),
        ("HalfCheetah-v5", "gail"): ("5177", 5177.07, None),
        ("Hopper-v5", "gail"): ("1761", 1761.44, None),
        ("Walker2d-v5", "gail"): ("2021", 2020.77, None),
    },
}
"""Source -> (task, method) -> score. The same task's v5 stands beside their older versions."""

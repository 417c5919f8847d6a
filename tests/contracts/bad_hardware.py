"""Hardware that is nowhere to be had, each with the words that the refusal must contain."""

from tests.contracts.manifests import Changes, hardware, tpu

FLAT = "must be 1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16 or 16x16"
PARTS = "must be 2x2x1, 2x2x2, 2x2x4, 2x4x4"
CUBES = "or AxBxC in multiples of 4 with A <= B <= C, from 4x4x4 to"
RESERVED = {"name": "h100s"}
TRAINER = "hardware.accelerator: training runs on CPUs and GPUs, not on TPUs; choose cpu or one that starts with nvidia"

HARDWARE: list[tuple[str, Changes, list[str]]] = [
    (
        "an accelerator nobody has",
        hardware(accelerator="nvidia-l5"),
        ["spec.hardware.accelerator", 'Unsupported value: "nvidia-l5"', '"cpu", "nvidia-tesla-t4", "nvidia-l4"'],
    ),
    ("a topology on a CPU", hardware(topology="2x4"), ["hardware.topology is for TPUs only; leave it out"]),
    ("a topology on a GPU", hardware(accelerator="nvidia-l4", topology="2x4"), ["hardware.topology is for TPUs only"]),
    ("a TPU without a topology", hardware(accelerator="tpu7x"), ["a TPU needs hardware.topology, such as 2x4"]),
    ("a TPU with a count", tpu("tpu-v6e-slice", "2x4", count=8), ["hardware.count is not for TPUs: the topology says"]),
    ("a CPU with a count", hardware(count=2), ["leave it out with accelerator cpu, and set hardware.resources.cpu"]),
    (
        "three T4s",
        hardware(accelerator="nvidia-tesla-t4", count=3),
        ["hardware.count must be 1, 2 or 4 for nvidia-tesla-t4: its machines have that many GPUs"],
    ),
    ("six L4s", hardware(accelerator="nvidia-l4", count=6), ["hardware.count must be 1, 2, 4 or 8 for nvidia-l4"]),
    (
        "twelve A100s",
        hardware(accelerator="nvidia-tesla-a100", count=12),
        ["hardware.count must be 1, 2, 4, 8 or 16 for nvidia-tesla-a100"],
    ),
    (
        "sixteen A100s of 80 GB",
        hardware(accelerator="nvidia-a100-80gb", count=16),
        ["hardware.count must be 1, 2, 4 or 8 for nvidia-a100-80gb"],
    ),
    (
        "three H100s",
        hardware(accelerator="nvidia-h100-80gb", count=3),
        ["hardware.count must be 1, 2, 4 or 8 for nvidia-h100-80gb"],
    ),
    (
        "one H100 of eight",
        hardware(accelerator="nvidia-h100-mega-80gb"),
        ["hardware.count must be 8 for nvidia-h100-mega-80gb"],
    ),
    (
        "four H200s of eight",
        hardware(accelerator="nvidia-h200-141gb", count=4),
        ["hardware.count must be 8 for nvidia-h200-141gb"],
    ),
    ("two B200s of eight", hardware(accelerator="nvidia-b200", count=2), ["hardware.count must be 8 for nvidia-b200"]),
    ("eight GB200s", hardware(accelerator="nvidia-gb200", count=8), ["hardware.count must be 4 for nvidia-gb200"]),
    ("one GB300", hardware(accelerator="nvidia-gb300"), ["hardware.count must be 4 for nvidia-gb300"]),
    (
        "five RTX PRO 6000",
        hardware(accelerator="nvidia-rtx-pro-6000", count=5),
        ["hardware.count must be 1, 2, 4 or 8 for nvidia-rtx-pro-6000"],
    ),
    (
        "a v4 slice of two sides",
        tpu("tpu-v4-podslice", "2x4"),
        [f"topology of tpu-v4-podslice {PARTS}, {CUBES} 12x12x16"],
    ),
    ("a v5e slice with an odd side", tpu("tpu-v5-lite-podslice", "3x3"), [f"topology of tpu-v5-lite-podslice {FLAT}"]),
    (
        "a v5p slice upside down",
        tpu("tpu-v5p-slice", "8x4x4"),
        [f"topology of tpu-v5p-slice {PARTS}, {CUBES} 16x16x24"],
    ),
    ("a v6e slice of three sides", tpu("tpu-v6e-slice", "2x2x2"), [f"hardware.topology of tpu-v6e-slice {FLAT}"]),
    ("a TPU7x slice that is not offered", tpu("tpu7x", "4x4x12"), [f"topology of tpu7x {PARTS}, 4x4x4, 4x4x8, 4x8x8"]),
    ("a topology in words", tpu("tpu-v6e-slice", "2by4"), [f"hardware.topology of tpu-v6e-slice {FLAT}"]),
    ("an empty topology", tpu("tpu-v6e-slice", ""), [f"hardware.topology of tpu-v6e-slice {FLAT}"]),
    (
        "spot and flex-start",
        hardware(accelerator="nvidia-l4", spot=True, flexStart=True),
        ["hardware.spot and hardware.flexStart exclude each other", "choose one"],
    ),
    (
        "reserved and spot",
        hardware(accelerator="nvidia-l4", spot=True, reservation=RESERVED),
        ["hardware.reservation and hardware.spot exclude each other: what is reserved is never spot"],
    ),
    (
        "reserved and flex-start",
        hardware(accelerator="nvidia-l4", flexStart=True, reservation=RESERVED),
        ["hardware.reservation and hardware.flexStart exclude each other"],
    ),
    ("a CPU in the queue", hardware(flexStart=True), ["hardware.flexStart is not offered for cpu or tpu-v4-podslice"]),
    (
        "a v4 slice in the queue",
        tpu("tpu-v4-podslice", "2x2x1", flexStart=True),
        ["hardware.flexStart is not offered for cpu or tpu-v4-podslice"],
    ),
    *(
        (
            f"a class of one's own and {field}",
            hardware(accelerator="nvidia-l4", computeClass="our-gpus", **{field: value}),
            ["hardware.computeClass names a class that itself decides on spot, flexStart and reservation"],
        )
        for field, value in (("spot", True), ("flexStart", True), ("reservation", RESERVED))
    ),
    (
        "Autopilot's GPU class without a GPU",
        hardware(computeClass="Accelerator"),
        ["hardware.computeClass Accelerator is Autopilot's class for GPUs: choose one that starts with nvidia"],
    ),
    *(
        (
            f"{cpu} CPUs",
            hardware(resources={"cpu": cpu}),
            ["hardware.resources.cpu must be a number of CPUs above 0 and below 1000, such as 2, 1.5 or 500m"],
        )
        for cpu in ("0", "0m", "4Gi", "5000")
    ),
    *(
        (
            f"memory of {memory}",
            hardware(resources={"memory": memory}),
            ["hardware.resources.memory must be above 0 and have a unit, such as 512Mi or 16Gi"],
        )
        for memory in ("16", "0Gi", "500m", "64k")
    ),
]

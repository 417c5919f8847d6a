"""One of two processes that train together; run by a test. Arguments: rank, rendezvous file, job file."""

import sys
from pathlib import Path

import torch
from sluice_training.job.inputs import find_inputs, load_config
from sluice_training.job.train_stage import train_here
from sluice_training.learn.worker import Worker

rank, rendezvous, job = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
config = load_config(job)
train_here(config, find_inputs(config), Worker(rank, 2))
torch.distributed.barrier()
torch.distributed.destroy_process_group()

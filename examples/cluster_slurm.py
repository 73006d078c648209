"""A Dask cluster of SLURM jobs: start it on a login node, in a folder that the nodes see, and let it run.

We have no SLURM cluster and did not run it. Needs dask-jobqueue.
"""

import time

from dask_jobqueue import SLURMCluster

cluster = SLURMCluster(
    queue="normal",
    walltime="02:00:00",
    cores=16,  # of a job
    processes=16,  # one thread each
    memory="32GB",
    worker_extra_args=["--lifetime", "110m", "--lifetime-stagger", "5m"],  # over before SLURM ends them
)
cluster.adapt(maximum_jobs=20)  # jobs are submitted when there are tasks, and end without
print(cluster.scheduler_address)  # for --scheduler

while True:
    time.sleep(60)

"""Many tasks on a Dask cluster: two processes on this machine make a data set.

A cluster on other machines is used in the same way, by the address of its scheduler.
"""

from distributed import LocalCluster

from elastofast.learning.dataset import Dataset, build_dataset

if __name__ == "__main__":  # the workers import this script, too
    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster:
        small = {"shape": (33, 33), "count": 6, "validation": 1, "test": 1}
        build_dataset("maps.h5", **small, scheduler=cluster.scheduler_address)
    with Dataset.open("maps.h5") as data:
        print(data)

"""A Dask cluster in Kubernetes, by the operator of dask-kubernetes: start it, and let it run.

The claim "scans" is a volume that many may read and write at a time (ReadWriteMany). We did not run it. Needs
dask-kubernetes.
"""

import time

from dask_kubernetes.operator import KubeCluster, make_cluster_spec

spec = make_cluster_spec(name="elastofast", image="registry.example/elastofast:0.1", n_workers=20)
for part in (spec["spec"]["worker"], spec["spec"]["scheduler"]):
    part["spec"]["volumes"] = [{"name": "scans", "persistentVolumeClaim": {"claimName": "scans"}}]
    part["spec"]["containers"][0]["volumeMounts"] = [{"name": "scans", "mountPath": "/scans"}]
spec["spec"]["worker"]["spec"]["containers"][0]["args"] += ["--nthreads", "1"]
cluster = KubeCluster(custom_cluster_spec=spec)
print(cluster.scheduler_address)  # for --scheduler

while True:
    time.sleep(60)

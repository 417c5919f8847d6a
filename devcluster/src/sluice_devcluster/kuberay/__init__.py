"""A stand-in for the KubeRay operator: a fake, for the local cluster and tests only, never shipped in a chart.

It makes the same RayClusters, pods and services from RayJobs and RayServices as KubeRay 1.7, submits through Ray's
own REST APIs, and writes the same status fields in the same order; a test compares it with recordings of the real
operator. It knows only what Sluice uses: RayJob in HTTPMode, RayService with upgradeStrategy None, no autoscaling, no
events. On a cluster that can reach it, install the real one from its Helm chart.
"""

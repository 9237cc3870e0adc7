"""Models that need no download: the embedded InternVL and the untrained tiny one."""

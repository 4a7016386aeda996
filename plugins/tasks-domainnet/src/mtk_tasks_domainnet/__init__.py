"""DomainNet tracks for mtk: ``domainnet-clip`` and ``domainnet-sd21``.

Importing this package is cheap; torch, open_clip, diffusers and the like are imported by
the functions that need them.
"""

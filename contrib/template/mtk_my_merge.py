"""my_merge: move from the base towards the mean of the experts."""

import mtk


def merge(*, experts, base, scale):
    return base + scale * sum(expert - base for expert in experts) / len(experts)


@mtk.hookimpl
def mtk_methods():
    yield mtk.Method(
        name="my_merge",
        target=merge,
        summary="Move from the base towards the mean of the experts",
        paper="unpublished",
        needs=mtk.Needs(base=True),
        params=(mtk.Param("scale", 1.0, "step length", low=0.0, grid=(0.5, 1.0)),),
    )

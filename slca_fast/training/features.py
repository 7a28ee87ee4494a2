"""Features of images under the test transform."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from slca_fast.data.stream import ImageSet
from slca_fast.errors import DataError, UserError
from slca_fast.machine.ranks import ALONE, Ranks
from slca_fast.model.backbone import Backbone, autocast

_MOST_NAMED = 20


class StoppedPass(Exception):
    """A stop was asked for while features were being extracted; nothing of the pass is kept."""


class NonFiniteFeatures(UserError):
    """Features became NaN or infinite; names the images."""


def extract_features(
    backbone: Backbone,
    images: ImageSet,
    precision: str,
    on_step: Callable[[int], None] = lambda num_images: None,
    ranks: Ranks = ALONE,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[Tensor, Tensor]:
    """Features (float32 ``[N, D]``) and labels (int64 ``[N]``) of all ``images`` under the test transform.

    On the backbone's device, in the order of the sample ids; the model is left in eval mode. The ranks share the
    fixed chunks and all get everything: the same bits, whatever their number. Raises StoppedPass on all ranks when
    ``should_stop`` says so on one, NonFiniteFeatures naming the images, DataError when quarantine leaves none.
    """
    device = next(backbone.parameters()).device
    backbone.eval()
    chunks = images.chunks()
    features: list[Tensor | None] = []
    ids: list[Tensor | None] = []
    stopped = False
    with torch.no_grad(), autocast(precision, device), backbone.unchanged():
        for batch in images.test_batches(chunks[ranks.rank :: ranks.size]):
            features.append(None if batch is None else _features(backbone, batch.images.to(device, non_blocking=True)))
            ids.append(None if batch is None else batch.sample_id_B)
            on_step(0 if batch is None else len(batch.label_B))
            if stopped := should_stop():
                break
    if ranks.any(stopped):
        raise StoppedPass
    gathered = ranks.gather_chunks(features, len(chunks))
    if not gathered:
        raise DataError(
            f"none of these {images.num_images} images can be decoded: {images.files(images.id_N[:_MOST_NAMED])}"
        )
    features_ND = torch.cat(gathered)
    id_N = torch.cat(ranks.gather_chunks(ids, len(chunks))).numpy()
    finite_N = features_ND.isfinite().all(1).cpu().numpy()
    if not finite_N.all():
        raise NonFiniteFeatures(
            f"the features of {(~finite_N).sum()} of {len(id_N)} images are NaN or infinite: the model has diverged, "
            f"or these images hold something odd: {images.files(id_N[~finite_N][:_MOST_NAMED])}"
        )
    return features_ND, torch.from_numpy(images.index.label_N[id_N]).to(device)


def _features(backbone: Backbone, images: Tensor) -> Tensor:
    """Features ``[B, D]`` float32; where the device's memory does not suffice, of one half after the other."""
    try:
        return backbone(images).float()
    except torch.OutOfMemoryError:
        if len(images) == 1:
            raise
    # Outside the handler, whose traceback would keep the failed pass's tensors alive.
    torch.cuda.empty_cache()
    return torch.cat([_features(backbone, half) for half in images.tensor_split(2)])

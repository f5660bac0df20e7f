"""BN-Inception of the packages that PyTorch's users have, where they are installed."""

import importlib.util
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from bn_jax.models import make_model, make_norm
from bn_jax.models.inception.torch_weights import (
    from_torch_state_dict,
    to_torch_state_dict,
)

torch = pytest.importorskip("torch")

NORM = make_norm("batch_norm", momentum=0.9, variance_correction=1)


def pytorchcv():
    models = pytest.importorskip("pytorchcv.models.bninception")
    network = models.bninception()
    # The original averages 7 x 7 positions, but small images leave fewer.
    network.features.final_pool = torch.nn.AdaptiveAvgPool2d(1)
    return network


def cadene():
    package = importlib.util.find_spec("pretrainedmodels")
    if package is None or package.origin is None:
        # `pytest.importorskip` would run the package's own imports: what its other
        # models need, and this one does not.
        pytest.skip("needs pretrainedmodels")
    path = Path(package.origin).parent / "models" / "bninception.py"
    spec = importlib.util.spec_from_file_location("cadene_bninception", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network = module.BNInception()
    network.global_pool = torch.nn.AdaptiveAvgPool2d(1)
    return network


@pytest.fixture(scope="module", params=[pytorchcv, cadene])
def peer(request):
    """A network with random weights and statistics, no two of them alike."""
    network = request.param()
    generator = torch.Generator().manual_seed(0)
    layers = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(layers) == 69
    with torch.no_grad():
        for layer in layers:
            layer.weight.uniform_(0.5, 1.5, generator=generator)
            layer.bias.normal_(0, 0.3, generator=generator)
            layer.running_mean.normal_(0, 0.3, generator=generator)
            layer.running_var.uniform_(0.5, 1.5, generator=generator)
        for layer in network.modules():
            if isinstance(layer, torch.nn.Conv2d):
                layer.bias.normal_(0, 0.3, generator=generator)
    return network


def inception(**fields):
    fields = {"separable": False} | fields
    return make_model("inception", num_classes=1000, norm=NORM, **fields)


def images_of(size):
    rng = np.random.default_rng(0)
    return rng.normal(size=(4, 3, size, size)).astype(np.float32)


def state_of(network):
    return {key: value.clone() for key, value in network.state_dict().items()}


# Poolings of the stem meet odd sizes in the second; the last is ImageNet's.
@pytest.mark.parametrize("size", [64, 66, 224])
def test_inference_agrees(peer, size):
    images = images_of(size)
    with torch.no_grad():
        expected = peer.eval()(torch.from_numpy(images)).numpy()
    model = inception()
    variables = from_torch_state_dict(peer.state_dict(), model)
    apply = jax.jit(partial(model.apply, train=False))
    logits = apply(variables, images.transpose(0, 2, 3, 1))
    scale = np.abs(expected).max()
    np.testing.assert_allclose(logits / scale, expected / scale, rtol=0, atol=1e-5)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_a_step_of_training_moves_the_statistics_alike(peer):
    before = state_of(peer)
    images = images_of(64)
    with torch.no_grad():
        expected = peer.train()(torch.from_numpy(images)).numpy()
    after = state_of(peer)
    peer.load_state_dict(before)
    model = inception()
    variables = from_torch_state_dict(before, model)
    apply = jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))
    logits, updates = apply(variables, images.transpose(0, 2, 3, 1))
    # The last modules normalize 16 values a channel.
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)
    expected_stats = from_torch_state_dict(after, model)["batch_stats"]
    for name, stats in updates["batch_stats"].items():
        for leaf in ("mean", "var"):
            theirs = expected_stats[name][leaf]
            scale = np.abs(theirs).max()
            np.testing.assert_allclose(stats[leaf] / scale, theirs / scale, atol=1e-4)


def test_the_peer_takes_its_weights_back_bit_for_bit(peer):
    naming = "cadene" if hasattr(peer, "last_linear") else "pytorchcv"
    model = inception(use_bias=True)
    state = state_of(peer)
    variables = from_torch_state_dict(state, model, with_count=True)
    written = to_torch_state_dict(variables, model, naming=naming)
    assert set(written) == set(state)
    for key, value in state.items():
        assert torch.equal(torch.from_numpy(written[key]), value)


def test_the_peer_loads_what_is_written_and_computes_the_same(peer):
    naming = "cadene" if hasattr(peer, "last_linear") else "pytorchcv"
    before = state_of(peer)
    images = torch.from_numpy(images_of(64))
    with torch.no_grad():
        expected = peer.eval()(images)
    model = inception()
    variables = from_torch_state_dict(before, model)
    written = to_torch_state_dict(variables, model, naming=naming)
    peer.load_state_dict({k: torch.from_numpy(v) for k, v in written.items()})
    with torch.no_grad():
        scores = peer.eval()(images)
    peer.load_state_dict(before)
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)

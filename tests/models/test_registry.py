import flax.linen as nn
import jax.numpy as jnp
import pytest

import bn_jax
from bn_jax.errors import UserError
from bn_jax.models import make_model, make_norm
from bn_jax.models.cnn import CNN
from bn_jax.models.inception.network import Inception
from bn_jax.models.mlp import MLP


def test_a_model_is_made_by_its_name():
    model = make_model("mlp", num_classes=7, hidden_features=(5, 3))
    assert model == MLP(num_classes=7, hidden_features=(5, 3))
    model = make_model("cnn", num_classes=7, channels=(5, 3))
    assert model == CNN(num_classes=7, channels=(5, 3))
    model = make_model("inception", num_classes=7, width=0.25)
    assert model == Inception(num_classes=7, width=0.25)


@pytest.mark.parametrize("name", ["relu", "sigmoid", "tanh", "gelu", "silu"])
def test_a_nonlinearity_is_found_by_its_name(name):
    model = make_model("mlp", num_classes=2, nonlinearity=name)
    assert model.nonlinearity is getattr(nn, name)


def test_a_nonlinearity_may_be_a_function():
    model = make_model("mlp", num_classes=2, nonlinearity=nn.softplus)
    assert model.nonlinearity is nn.softplus


@pytest.mark.parametrize("model", ["mlp", "cnn", "inception"])
@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_a_dtype_is_found_by_its_name(name, model):
    assert make_model(model, num_classes=2, dtype=name).dtype is getattr(jnp, name)


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_a_dtype_may_be_one_or_none(dtype):
    assert make_model("mlp", num_classes=2, dtype=dtype).dtype is dtype


def test_a_norm_is_a_factory_of_layers():
    factory = make_norm("batch_norm", epsilon=1e-3, momentum=0.9)
    layer = factory(use_running_average=True, name="norm0")
    assert isinstance(layer, bn_jax.BatchNorm)
    assert (layer.epsilon, layer.momentum, layer.name) == (1e-3, 0.9, "norm0")
    assert layer.use_running_average is True


def test_no_norm_has_no_factory():
    assert make_norm(None) is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: make_model("mpl", num_classes=2),
            "config.model.name must be one of .*, but is 'mpl'; did you mean 'mlp'",
        ),
        (
            lambda: make_model("resnet", num_classes=2),
            r"one of mlp, cnn, inception, but is 'resnet'\. .* \"package.module:Class",
        ),
        (
            lambda: make_model("mlp", num_classes=2, hidden_feature=(3,)),
            "a field of MLP .* 'hidden_feature'; did you mean 'hidden_features'",
        ),
        (
            lambda: make_model("mlp", num_classes=2, nonlinearity="sigmoidal"),
            "nonlinearity .* but is 'sigmoidal'; did you mean 'sigmoid'",
        ),
        (
            lambda: make_model("mlp", num_classes=2, nonlinearity="step"),
            "nonlinearity must be one of relu, sigmoid, tanh, .* but is 'step'",
        ),
        (
            lambda: make_model("mlp", num_classes=2, dtype="bfloat61"),
            "config.dtype .* but is 'bfloat61'; did you mean 'bfloat16'",
        ),
        (
            lambda: make_model("cnn", num_classes=2, dtype="int8"),
            "dtype must be one of float32, bfloat16, float16, but is 'int8'",
        ),
        (
            lambda: make_norm("batchnorm"),
            "config.norm.name .* but is 'batchnorm'; did you mean 'batch_norm'",
        ),
        (
            lambda: make_norm("batch_norm", eps=1e-3),
            "config.norm: a field of BatchNorm must be one of .* but is 'eps'",
        ),
        (
            lambda: make_norm("batch_norm", momentun=0.9),
            "field of BatchNorm .* but is 'momentun'; did you mean 'momentum'",
        ),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize("num_classes", [0, -3])
def test_a_model_without_classes_is_refused(num_classes):
    expected = f"num_classes must be at least 1, but is {num_classes}"
    with pytest.raises(UserError, match=expected):
        make_model("inception", num_classes=num_classes)


@pytest.mark.parametrize("name", ["mlp", "cnn", "inception"])
@pytest.mark.parametrize(
    ("norm", "came"),
    [
        ("batch_norm", "'batch_norm'"),
        (bn_jax.BatchNorm(True), "of type BatchNorm"),
        (3, "of type int"),
    ],
)
def test_a_norm_that_makes_no_layers_is_refused(name, norm, came):
    expected = f"norm must be a factory .* but is {came}; make_norm.* makes one"
    with pytest.raises(UserError, match=expected):
        make_model(name, num_classes=2, norm=norm)

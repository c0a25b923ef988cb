"""The plain forms against loops over tokens, and the Triton kernels against the plain forms: interpreted on the CPU (in
a process of its own, as Triton decides when it is imported) and, where there is one, on a GPU."""
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TRAIN = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TRAIN))
import kernels  # noqa: E402


def error(got, expected) -> float:
    return float((got.double() - expected.double()).norm() / expected.double().norm())


def scan_by_tokens(xbc, dt, decay, init):
    """The recurrence itself, in fp64."""
    xbc, dt, decay, state = (t.double() for t in (xbc, dt, decay, init))
    heads, width, states = init.shape[1:]
    x, b, c = xbc.split([heads * width, states, states], -1)
    out = []
    for t in range(xbc.shape[1]):
        added = dt[:, t, :, None, None] * x[:, t].unflatten(-1, (heads, width))[..., None] * b[:, t, None, None]
        state = torch.exp(dt[:, t] * decay)[..., None, None] * state + added
        out.append((state * c[:, t, None, None]).sum(-1))
    return torch.stack(out, 1), state


@pytest.mark.parametrize("length", [64, 11, 200, 1])
def test_the_scan_is_the_recurrence_at_any_length(length):
    torch.manual_seed(1)
    xbc, dt, decay, init = kernels.ssd_inputs("cpu", torch.float32, 2, length, 3)
    y, state = kernels.ssd(xbc, dt, decay, init)
    expected_y, expected_state = scan_by_tokens(xbc, dt, decay, init)
    assert error(y, expected_y) < 1e-5 and error(state, expected_state) < 1e-4


def test_gradients_of_the_scan_are_those_of_the_recurrence():
    torch.manual_seed(2)
    xbc, dt, decay, init = kernels.ssd_inputs("cpu", torch.float32, 1, 130, 2)
    direction = torch.randn(1, 130, 2, 64)
    got = kernels.gradients(lambda *leaves: kernels.ssd(*leaves, init), (xbc, dt, decay), direction)
    expected = kernels.gradients(lambda *leaves: scan_by_tokens(*leaves, init), (xbc, dt, decay), direction)
    assert len(got) == 5
    for one, other in zip(got, expected):
        assert error(one, other) < 1e-4


def test_no_gradient_goes_through_a_carried_state():
    xbc, dt, decay, init = kernels.ssd_inputs("cpu", torch.float32, 1, 64, 1)
    y, state = kernels.ssd(xbc.requires_grad_(), dt, decay, init.requires_grad_())
    assert y.requires_grad and not state.requires_grad
    y.sum().backward()
    assert init.grad is None


@pytest.mark.parametrize("causal", [True, False])
def test_hsa_weighs_a_softmax_inside_each_chunk(causal):
    torch.manual_seed(3)
    q, k, v, w = kernels.hsa_inputs("cpu", torch.float32, 2, 256, 256, 2, False, top=2)  # also chunks to come
    out = kernels.hsa(q, k, v, w, causal)
    for sequence, token, head in [(0, 5, 0), (1, 64, 1), (0, 130, 1), (1, 255, 0)]:
        expected = torch.zeros(64)
        for chunk in range(4):
            if causal and chunk >= token // 64:
                continue
            here = slice(chunk * 64, chunk * 64 + 64)
            shares = torch.softmax(k[sequence, here] @ q[sequence, token, head] / 8, 0)
            expected += w[sequence, token, chunk] * (shares @ v[sequence, here])
        assert torch.allclose(out[sequence, token, head], expected, atol=1e-5)


@pytest.mark.parametrize("length,window", [(50, 64), (65, 64), (300, 64), (256, 128)])
def test_a_window_is_the_token_and_those_before_it(length, window):
    torch.manual_seed(4)
    q, k, v = torch.randn(3, 2, 2, length, 32)
    out = kernels.swa(q, k, v, window)
    for token in range(length):
        seen = slice(max(0, token - window), token + 1)
        shares = torch.softmax((k[:, :, seen] @ q[:, :, token, :, None])[..., 0] / math.sqrt(32), -1)
        assert torch.allclose(out[:, :, token], (shares[..., None] * v[:, :, seen]).sum(2), atol=1e-5)


@pytest.mark.skipif(kernels.triton is None, reason="Triton is not installed")
def test_interpreted_kernels_are_the_plain_forms():
    code = """if True:
        import json, torch, kernels
        args = [t.requires_grad_() for t in kernels.hsa_inputs("cpu", torch.float32, 1, 64, 64, 1, False, top=1)]
        torch.library.opcheck(kernels._hsa, (*args, False), test_utils=("test_schema", "test_faketensor"))
        print(json.dumps(kernels.check("cpu", torch.float32)))
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=TRAIN, env={**os.environ, "TRITON_INTERPRET": "1"},
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    errors = json.loads(done.stdout.splitlines()[-1])
    assert len(errors) == 15 and max(errors.values()) < 1e-4, errors


@pytest.mark.skipif(kernels.triton is None or not torch.cuda.is_available(), reason="no GPU")
def test_kernels_on_a_gpu_are_the_plain_forms():
    errors = kernels.check("cuda", torch.bfloat16, 2, 1024, 12, 6)
    assert max(errors.values()) < 2e-2, errors

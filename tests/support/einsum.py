"""A whole ResNet with layer attention, as the equations are written."""
import math

import torch
import torch.nn.functional as F


def einsum_term(layer, pasts, x):
    """Equations 4 and 5 of one layer, by concatenation."""
    batch, channels, height, width = x.shape
    heads = channels // layer.head_dim
    pad = layer.query.weight.shape[-1] // 2
    pooled = x.mean((2, 3))[:, None]
    query, key = (
        F.conv1d(pooled, conv.weight, padding=pad).reshape(batch, heads, -1)
        for conv in (layer.query, layer.key))
    value = F.conv2d(x, layer.value.weight, padding=1, groups=channels)
    pasts.append((key, value.reshape(batch, heads, -1, height, width)))
    keys, values = (torch.stack(part, 2) for part in zip(*pasts))
    logits = torch.einsum('bhd,bhnd->bhn', query, keys)
    weights = torch.softmax(logits / math.sqrt(layer.head_dim), -1)
    out = torch.einsum('bhn,bhndyx->bhdyx', weights, values).reshape(x.shape)
    return torch.relu(
        F.batch_norm(out, None, None, layer.norm.weight, layer.norm.bias,
                     training=True, eps=layer.norm.eps))


def einsum_network(net, x):
    """The host's forward with attention as it is written."""
    x = net.maxpool(net.stem(x) if net.deep_stem else net.relu(
        net.norm1(net.conv1(x))))
    outs = []
    for stage in net.attention_stages:
        pasts = []
        for i, block in enumerate(stage):
            x = block(x)
            if stage.active[i]:
                x = x + einsum_term(stage.attention[i], pasts, x)
        outs.append(x)
    return outs


def assert_equals_einsum(net, x):
    """In features and in the gradients of all that attends."""
    ours, theirs = net(x), einsum_network(net, x)
    names, parameters = zip(*(
        (n, p) for n, p in net.named_parameters() if p.requires_grad and
        ('.attention.' in n or n == 'layer1.0.conv1.weight')))
    weights = [torch.randn_like(out) for out in ours]
    gradients = [
        torch.autograd.grad(
            sum((out * w).sum() for out, w in zip(outs, weights)), parameters)
        for outs in (ours, theirs)
    ]
    for out, other in zip(ours, theirs):
        torch.testing.assert_close(out, other, rtol=1e-9, atol=1e-9)
    for name, ours, theirs in zip(names, *gradients):
        # The first of a stage weighs itself alone, whatever it asks.
        assert theirs.any() or not name.endswith('value.weight'), name
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)

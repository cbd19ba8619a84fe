"""R models of one size, stacked: every weight has a leading dimension for the run, so that a step is a few batched products.

Weights: sq [R, L, 8, D, D] (attn1 q k v o, attn2 q k v o), ff1 [R, L, 4D, D], ff2 [R, L, D, 4D], rest [R, K] (all else, flat).
Pictures are in patch layout [.., 64, 16], a patch's values in the order (row, column, channel).
"""
import math

import torch
import torch.nn.functional as F

SLOTS = [f"{a}.{n}" for a in ("attn1", "attn2") for n in ("to_q", "to_k", "to_v", "to_out.0")]


def patch(z):
    """[..., 4, 16, 16] -> [..., 64, 16]."""
    lead = z.shape[:-3]
    z = z.reshape(*lead, 4, 8, 2, 8, 2)
    n = len(lead)
    return z.permute(*range(n), n + 1, n + 3, n + 2, n + 4, n).reshape(*lead, 64, 16)


def unpatch(z):
    lead = z.shape[:-2]
    z = z.reshape(*lead, 8, 8, 2, 2, 4)
    n = len(lead)
    return z.permute(*range(n), n + 4, n, n + 2, n + 1, n + 3).reshape(*lead, 4, 16, 16)


class Net:
    def __init__(self, depth=6, heads=4, dim=128, din=128, pos=None, dtype=torch.float32):
        self.L, self.H, self.D, self.din, self.pos, self.dt = depth, heads, dim, din, pos, dtype
        D, L = dim, depth
        self.spec = [
            ("patch.w", (D, 16)), ("patch.b", (D,)), ("t1.w", (D, 256)), ("t1.b", (D,)), ("t2.w", (D, D)), ("t2.b", (D,)),
            ("ada.w", (6 * D, D)), ("ada.b", (6 * D,)), ("c1.w", (D, din)), ("c1.b", (D,)), ("c2.w", (D, D)), ("c2.b", (D,)),
            ("out.w", (16, D)), ("out.b", (16,)), ("sst", (2, D)),
            ("attn.b", (L, 8, D)), ("ff1.b", (L, 4 * D)), ("ff2.b", (L, D)), ("tab", (L, 6, D))]
        self.sizes = [math.prod(s) for _, s in self.spec]
        self.K = sum(self.sizes)
        self.manual_cross = False

    def shapes(self, R):
        L, D = self.L, self.D
        return [(R, L, 8, D, D), (R, L, 4 * D, D), (R, L, D, 4 * D), (R, self.K)]

    def init(self, seeds, device, dins=None):
        """The library's initialisation, other random numbers."""
        out = []
        for n, seed in enumerate(seeds):
            g = torch.Generator().manual_seed(1_000 + seed)
            L, D = self.L, self.D

            def xavier(*shape):
                bound = math.sqrt(6 / (shape[-1] + shape[-2]))
                return (torch.rand(*shape, generator=g) * 2 - 1) * bound
            sq = xavier(L, 8, D, D)
            sq[:, 7] = 0
            ff1, ff2 = xavier(L, 4 * D, D), xavier(L, D, 4 * D)
            rest = []
            for name, shape in self.spec:
                if name in ("t1.w", "t2.w", "ada.w"):
                    v = torch.randn(*shape, generator=g) * 0.02
                elif name in ("sst", "tab"):
                    v = torch.randn(*shape, generator=g) / math.sqrt(D)
                elif name == "out.w" or name.endswith(".b"):
                    v = torch.zeros(*shape)
                elif name == "c1.w" and dins and dins[n] < self.din:
                    v = F.pad(xavier(self.D, dins[n]), (0, self.din - dins[n]))
                else:
                    v = xavier(*shape)
                rest.append(v.flatten())
            out.append([sq, ff1, ff2, torch.cat(rest)])
        return [torch.stack(z).to(device) for z in zip(*out)]

    def text_mask(self, device):
        """[K]: 1 where a weight of `rest` belongs to the text path."""
        m = []
        for name, shape in self.spec:
            v = torch.zeros(*shape)
            if name[:2] in ("c1", "c2"):
                v += 1
            if name == "attn.b":
                v[:, 4:] = 1
            m.append(v.flatten())
        return torch.cat(m).to(device)

    def state_dict(self, params, r, din=None):
        """Run r as the library's state dict."""
        sq, ff1, ff2, rest = (p[r].detach().float().cpu() for p in params)
        P = {n: v.reshape(s) for (n, s), v in zip(self.spec, rest.split(self.sizes))}
        out = {}
        for l in range(self.L):
            b = f"transformer_blocks.{l}."
            for k, slot in enumerate(SLOTS):
                out[b + slot + ".weight"], out[b + slot + ".bias"] = sq[l, k], P["attn.b"][l, k]
            out[b + "ff.net.0.proj.weight"], out[b + "ff.net.0.proj.bias"] = ff1[l], P["ff1.b"][l]
            out[b + "ff.net.2.weight"], out[b + "ff.net.2.bias"] = ff2[l], P["ff2.b"][l]
            out[b + "scale_shift_table"] = P["tab"][l]
        out["pos_embed.proj.weight"] = P["patch.w"].reshape(self.D, 2, 2, 4).permute(0, 3, 1, 2)
        out["pos_embed.proj.bias"] = P["patch.b"]
        for a, b in (("t1", "adaln_single.emb.timestep_embedder.linear_1"), ("t2", "adaln_single.emb.timestep_embedder.linear_2"),
                     ("ada", "adaln_single.linear"), ("c1", "caption_projection.linear_1"), ("c2", "caption_projection.linear_2"),
                     ("out", "proj_out")):
            out[b + ".weight"], out[b + ".bias"] = P[a + ".w"], P[a + ".b"]
        out["scale_shift_table"] = P["sst"]
        out["caption_projection.linear_1.weight"] = P["c1.w"][:, :din]
        return {k: v.contiguous().clone() for k, v in out.items()}

    def load(self, state):
        """The library's state dict -> stacked weights of one run."""
        s = {k: v.float() for k, v in state.items()}
        sq = torch.stack([torch.stack([s[f"transformer_blocks.{l}.{k}.weight"] for k in SLOTS]) for l in range(self.L)])
        ff1 = torch.stack([s[f"transformer_blocks.{l}.ff.net.0.proj.weight"] for l in range(self.L)])
        ff2 = torch.stack([s[f"transformer_blocks.{l}.ff.net.2.weight"] for l in range(self.L)])
        e = "adaln_single.emb.timestep_embedder."
        one = {"patch.w": s["pos_embed.proj.weight"].permute(0, 2, 3, 1), "patch.b": s["pos_embed.proj.bias"],
               "t1.w": s[e + "linear_1.weight"], "t1.b": s[e + "linear_1.bias"], "t2.w": s[e + "linear_2.weight"],
               "t2.b": s[e + "linear_2.bias"], "ada.w": s["adaln_single.linear.weight"], "ada.b": s["adaln_single.linear.bias"],
               "c1.w": s["caption_projection.linear_1.weight"], "c1.b": s["caption_projection.linear_1.bias"],
               "c2.w": s["caption_projection.linear_2.weight"], "c2.b": s["caption_projection.linear_2.bias"],
               "out.w": s["proj_out.weight"], "out.b": s["proj_out.bias"], "sst": s["scale_shift_table"]}
        B = [f"transformer_blocks.{l}." for l in range(self.L)]
        one["attn.b"] = torch.stack([torch.stack([s[b + k + ".bias"] for k in SLOTS]) for b in B])
        one["ff1.b"] = torch.stack([s[b + "ff.net.0.proj.bias"] for b in B])
        one["ff2.b"] = torch.stack([s[b + "ff.net.2.bias"] for b in B])
        one["tab"] = torch.stack([s[b + "scale_shift_table"] for b in B])
        rest = torch.cat([one[n].reshape(-1) for n, _ in self.spec])
        return [z[None] for z in (sq, ff1, ff2, rest)]

    def __call__(self, sq, ff1, ff2, rest, xt, t, text, bias):
        """xt [R, B, 64, 16], t [R, B] in 0..1, text [R, B, T, din], bias [R, B, T] (0 or -10000) -> [R, B, 64, 16] float32."""
        R, B = t.shape
        T, D, H, dt = text.shape[2], self.D, self.H, self.dt
        d = D // H
        P = {n: v.reshape(R, *s) for (n, s), v in zip(self.spec, rest.split(self.sizes, 1))}
        sq, ff1, ff2 = (z.to(dt).unbind(1) for z in (sq, ff1, ff2))

        def lin(x, w, b):
            return torch.baddbmm(b[:, None].to(x.dtype), x, w.to(x.dtype).transpose(1, 2))
        h = lin(xt.reshape(R, B * 64, 16).to(dt), P["patch.w"], P["patch.b"]).float().view(R, B, 64, D) + self.pos
        freq = torch.exp(-math.log(10000.0) / 128 * torch.arange(128, device=t.device))
        a = t[..., None] * 1000 * freq
        e = lin(torch.cat([a.cos(), a.sin()], -1), P["t1.w"], P["t1.b"])
        e = lin(F.silu(e), P["t2.w"], P["t2.b"])                                            # [R, B, D]
        mod = lin(F.silu(e), P["ada.w"], P["ada.b"]).view(R, B, 1, 6, D)
        c = lin(text.reshape(R, B * T, -1).to(dt), P["c1.w"], P["c1.b"])
        c = lin(F.gelu(c, approximate="tanh"), P["c2.w"], P["c2.b"])                       # [R, B T, D]
        ab, tab, b1, b2 = P["attn.b"], P["tab"], P["ff1.b"], P["ff2.b"]
        mask = bias.to(dt).view(R * B, 1, 1, T)
        for l in range(self.L):
            m = mod + tab[:, l].view(R, 1, 1, 6, D)
            sh1, sc1, g1, sh2, sc2, g2 = m.unbind(3)                                        # [R, B, 1, D]
            y = torch.addcmul(sh1, F.layer_norm(h, (D,), eps=1e-6), 1 + sc1).to(dt)
            qkv = lin(y.view(R, B * 64, D), sq[l][:, :3].reshape(R, 3 * D, D), ab[:, l, :3].reshape(R, 3 * D))
            q, k, v = qkv.view(R * B, 64, 3, H, d).permute(2, 0, 3, 1, 4).unbind(0)
            o = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(R, B * 64, D)
            o = lin(o, sq[l][:, 3], ab[:, l, 3]).view(R, B, 64, D)
            h = torch.addcmul(h, g1, o.float())
            q = lin(h.to(dt).view(R, B * 64, D), sq[l][:, 4], ab[:, l, 4]).view(R * B, 64, H, d).transpose(1, 2)
            kv = lin(c, sq[l][:, 5:7].reshape(R, 2 * D, D), ab[:, l, 5:7].reshape(R, 2 * D))
            k, v = kv.view(R * B, T, 2, H, d).permute(2, 0, 3, 1, 4).unbind(0)
            if self.manual_cross:
                o = ((q @ k.transpose(2, 3)).float() * d ** -0.5 + mask.float()).softmax(-1).to(dt) @ v
            else:
                o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.expand(R * B, H, 64, T))
            o = o.transpose(1, 2).reshape(R, B * 64, D)
            h = h + lin(o, sq[l][:, 7], ab[:, l, 7]).view(R, B, 64, D)
            y = torch.addcmul(sh2, F.layer_norm(h, (D,), eps=1e-6), 1 + sc2).to(dt)
            y = F.gelu(lin(y.view(R, B * 64, D), ff1[l], b1[:, l]), approximate="tanh")
            y = lin(y, ff2[l], b2[:, l]).view(R, B, 64, D)
            h = torch.addcmul(h, g2, y.float())
        m = P["sst"].view(R, 1, 1, 2, D) + e.view(R, B, 1, 1, D)
        sh, sc = m.unbind(3)
        y = torch.addcmul(sh, F.layer_norm(h, (D,), eps=1e-6), 1 + sc).to(dt)
        return lin(y.view(R, B * 64, D), P["out.w"], P["out.b"]).float().view(R, B, 64, 16)


def newton_schulz(g, dtype=torch.bfloat16, steps=5):
    """Batched: g [..., a, b] -> its polar factor, roughly; torch.optim.Muon's."""
    a, b, c = 3.4445, -4.7750, 2.0315
    shape = g.shape
    x = g.to(dtype).reshape(-1, *shape[-2:])
    tall = shape[-2] > shape[-1]
    if tall:
        x = x.transpose(1, 2)
    x = x / x.float().square().sum((1, 2), keepdim=True).sqrt().clamp(min=1e-7).to(dtype)
    for _ in range(steps):
        gram = torch.bmm(x, x.transpose(1, 2))
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, gram, x, beta=a)
    return (x.transpose(1, 2) if tall else x).reshape(shape)


class Optim:
    """Per run: clip, Muon on the first three stacks, AdamW on the last, EMA of all. All in place, for a CUDA graph."""

    def __init__(self, net, params, clip=1.0, wd=0.01, ns_dtype=torch.bfloat16):
        self.params, self.clip, self.wd, self.ns = params, clip, wd, ns_dtype
        self.buf = [torch.zeros_like(p) for p in params]        # momentum; Adam's first moment for the last
        self.v = torch.zeros_like(params[3])
        self.ema = [p.detach().clone() for p in params]
        self.tmask = net.text_mask(params[3].device)

    def reset(self, init):
        for p, e, i in zip(self.params, self.ema, init):
            p.data.copy_(i), e.copy_(i)
        for b in [*self.buf, self.v]:
            b.zero_()

    @torch.no_grad()
    def step(self, grads, lrm, lra, tm, emax, step):
        """lrm, lra, tm, emax [R]; step [] float: steps done before."""
        norm = sum(g.flatten(1).square().sum(1) for g in grads).sqrt()
        coef = (self.clip / (norm + 1e-6)).clamp(max=1.0)
        for i, ratio in ((0, 1.0), (1, 2.0), (2, 1.0)):
            p, buf = self.params[i], self.buf[i]
            shape = (-1,) + (1,) * (p.ndim - 1)
            g = grads[i] * coef.view(shape)
            buf.lerp_(g, 0.05)
            u = newton_schulz(g.lerp(buf, 0.95), self.ns).float()
            lr = lrm.view(shape)
            if i == 0:
                m = torch.ones(8, device=p.device)
                m[4:] = 0
                lr = lr * (m + (1 - m) * tm[:, None]).view(-1, 1, 8, 1, 1)
            p.mul_(1 - lr * self.wd).sub_(lr * ratio * u)
        g = grads[3] * coef[:, None]
        n = step + 1
        self.buf[3].lerp_(g, 0.1)
        self.v.mul_(0.999).addcmul_(g, g, value=0.001)
        denom = (self.v / (1 - 0.999 ** n)).sqrt() + 1e-8
        lr = lra[:, None] * (1 + self.tmask * (tm[:, None] - 1))
        self.params[3].sub_(lr * (self.buf[3] / (1 - 0.9 ** n)) / denom)
        decay = torch.minimum(emax, 1 - (1 + step) ** -0.75) * (step > 0)
        for p, e in zip(self.params, self.ema):
            e.lerp_(p, (1 - decay).view((-1,) + (1,) * (p.ndim - 1)))
        return norm


# ---- the VAE of the library, without diffusers
class PlainVAE:
    def __init__(self, state, mean, std, device):
        self.s = {k: v.float().to(device) for k, v in state.items()}
        self.mean, self.std = (torch.tensor(z, device=device).view(1, -1, 1, 1) for z in (mean, std))

    def conv(self, x, n, **k):
        return F.conv2d(x, self.s[n + ".weight"], self.s[n + ".bias"], **k)

    def norm(self, x, n):
        return F.silu(F.group_norm(x, 4, self.s[n + ".weight"], self.s[n + ".bias"], 1e-6))

    def res(self, x, n):
        h = self.conv(self.norm(x, n + ".norm1"), n + ".conv1", padding=1)
        h = self.conv(self.norm(h, n + ".norm2"), n + ".conv2", padding=1)
        return h + (self.conv(x, n + ".conv_shortcut") if n + ".conv_shortcut.weight" in self.s else x)

    @torch.no_grad()
    def encode(self, images, batch=512):
        out = []
        for x in images.split(batch):
            x = self.conv(x.to(self.mean.device).float() / 127.5 - 1, "encoder.conv_in", padding=1)
            for i in range(4):
                x = self.res(x, f"encoder.down_blocks.{i}.resnets.0")
                if i < 3:
                    x = self.conv(F.pad(x, (0, 1, 0, 1)), f"encoder.down_blocks.{i}.downsamplers.0.conv", stride=2)
            x = self.res(self.res(x, "encoder.mid_block.resnets.0"), "encoder.mid_block.resnets.1")
            x = self.conv(self.norm(x, "encoder.conv_norm_out"), "encoder.conv_out", padding=1)
            out.append(self.conv(x, "quant_conv")[:, :4])
        return (torch.cat(out) - self.mean) / self.std

    @torch.no_grad()
    def decode(self, z, batch=512):
        out = []
        for x in z.split(batch):
            x = self.conv(self.conv(x * self.std + self.mean, "post_quant_conv"), "decoder.conv_in", padding=1)
            x = self.res(self.res(x, "decoder.mid_block.resnets.0"), "decoder.mid_block.resnets.1")
            for i in range(4):
                x = self.res(self.res(x, f"decoder.up_blocks.{i}.resnets.0"), f"decoder.up_blocks.{i}.resnets.1")
                if i < 3:
                    x = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"), f"decoder.up_blocks.{i}.upsamplers.0.conv",
                                  padding=1)
            x = self.conv(self.norm(x, "decoder.conv_norm_out"), "decoder.conv_out", padding=1)
            out.append(((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8))
        return torch.cat(out)


def dpm(predict, x, sigmas, times):
    """DPM-Solver++ 2M on the flow path; predict(x, sigma, t in 0..1) -> x_0. sigmas [n + 1], the last 0; times [n] in 0..1."""
    last = None
    n = len(times)
    lam = [math.log(1 - s + 1e-300) - math.log(s) if s > 0 else math.inf for s in sigmas]
    for i in range(n):
        s0, s1 = sigmas[i], sigmas[i + 1]
        x0 = predict(x, s0, times[i])
        if i == n - 1:
            return x0
        h = lam[i + 1] - lam[i]
        k = (1 - s1) * math.expm1(-h)
        x = s1 / s0 * x - k * x0 if last is None else \
            s1 / s0 * x - k * x0 - 0.5 * k * (x0 - last) * h / (lam[i] - lam[i - 1])
        last = x0

"""Train many recipes at once on one GPU and log their curves.   python gpu_search.py RUNS.json OUT --budget 300

Research scratch. RUNS.json: a list of runs, most wanted first (see `Plan`); as many as fit the budget are trained, stacked.
"""
import argparse
import json
import math
import multiprocessing as mp
import os
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE / "lib")]
START = time.time()
NC = 4
DEFAULT = dict(seed=0, pred="x0", cap=0.1, mix=[[0, [[1, 0.97, 1.0]]]], p=[[0, 0.0]], lr=[[0, 1.0]], text_lr=[[0, 1.0]], muon=0.02,
               adam=2e-3, ema=0.999, drop=[[0, 0.5]], up=[[0, 0.5]], quad=[[0, 0]], decay=0.2, warmup=100, table=42, base=10000.0,
               center=False, encoder="rte", init=None, fused=0.0)


def say(*a):
    print(f"[{time.time() - START:6.1f}]", *a, flush=True)


def score_job(job):
    path, prompts = job
    import numpy as np, torch
    torch.set_num_threads(1)
    import cv2
    cv2.setNumThreads(1)
    from spatial_circuits.metrics import METRICS, score
    images = torch.from_numpy(np.load(path))
    os.remove(path)
    frame = score(images, prompts)
    return {m: round(float(frame[m].mean()), 4) for m in METRICS}


def warm(_):
    import torch, cv2, pandas
    import spatial_circuits.metrics
    time.sleep(0.5)


def keyed(frames, share):
    """[[share, value], ...] -> value at each share, linear between, constant outside."""
    import numpy as np
    xs, ys = [f[0] for f in frames], np.array([f[1] for f in frames], dtype=float)
    flat = ys.reshape(len(xs), -1)
    out = np.stack([np.interp(share, xs, flat[:, j]) for j in range(flat.shape[1])], 1)
    return out.reshape(len(share), *ys.shape[1:])


def as_x0(o, xt, t, is_x0, is_e):
    """The x_0 that an output stands for: flow velocity, x_0 itself, or EDM's skip (1 - t) / s^2 and scale t / s, s^2 = (1 - t)^2 + t^2."""
    s2 = (1 - t) ** 2 + t ** 2
    edm = xt * ((1 - t) / s2) + o * (t / s2 ** 0.5)
    return is_x0 * o + is_e * edm + (1 - is_x0 - is_e) * (xt - t * o)


class Plan:
    """The schedules of R runs as tables [steps, R, ...]."""

    def __init__(self, runs, steps, device, t):
        import numpy as np
        share = np.arange(steps) / steps
        mix = np.zeros((steps, len(runs), NC, 3))
        for r, run in enumerate(runs):
            m = keyed(run["mix"], share)
            mix[:, r, :m.shape[1]] = m
            mix[:, r, m.shape[1]:, 1:] = 0.5
        tab = lambda k: t.tensor(np.stack([keyed(run[k], share) for run in runs], 1), dtype=t.float32, device=device)
        self.mix = t.tensor(mix, dtype=t.float32, device=device)
        self.p, self.drop, self.up, self.tm = tab("p"), tab("drop"), tab("up"), tab("text_lr")
        self.quad = tab("quad") > 0.5
        lr = tab("lr").cpu().numpy()
        for r, run in enumerate(runs):
            start = 1 - run["decay"]
            fall = np.where(share > start, (1 + np.cos(np.pi * np.clip((share - start) / max(1e-9, run["decay"]), 0, 1))) / 2, 1.0)
            lr[:, r] *= fall * np.minimum(1, (np.arange(steps) + 1) / run["warmup"])
        lr = t.tensor(lr, device=device)
        v = lambda k: t.tensor([float(run[k]) for run in runs], device=device)
        self.lrm, self.lra = lr * v("muon"), lr * v("adam")
        self.ema, self.cap = v("ema"), v("cap")
        self.is_x0 = t.tensor([float(run["pred"] == "x0") for run in runs], device=device)
        self.is_e = t.tensor([float(run["pred"] == "edm") for run in runs], device=device)      # EDM's preconditioning, variance-preserving v


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("runs"), ap.add_argument("out")
    ap.add_argument("--budget", type=float, default=240)      # seconds in all
    ap.add_argument("--steps", type=int, default=3200)
    ap.add_argument("--batch", type=int, default=128)
    ap.add_argument("--scenes", type=int, default=32768)      # and as many with their objects exchanged
    ap.add_argument("--device", default="cuda")
    ap.add_argument("--dtype", default="bf16")
    ap.add_argument("--compile", type=int, default=1)
    ap.add_argument("--backend", default="inductor")
    ap.add_argument("--dump", default="")
    ap.add_argument("--graph", type=int, default=1)
    ap.add_argument("--max-runs", type=int, default=64)
    ap.add_argument("--chunk", type=int, default=80)
    ap.add_argument("--every", type=int, default=80)          # probe every so many steps
    ap.add_argument("--sample-at", default="")
    ap.add_argument("--prompts", type=int, default=264)
    ap.add_argument("--save", type=int, default=8)
    ap.add_argument("--workers", type=int, default=14)
    ap.add_argument("--keep", default="")                     # folder for the weights
    ap.add_argument("--size", default="6,4,128")
    ap.add_argument("--snapshots", default="")                # names of runs whose text path is saved densely
    ap.add_argument("--assets", default=str(HERE / "assets"))
    ap.add_argument("--vae", default=str(HERE / "vae"))
    a = ap.parse_args()
    pool = mp.get_context("fork").Pool(a.workers) if a.workers else None
    warming = pool.map_async(warm, range(a.workers * 2)) if pool else None
    import numpy as np
    import torch
    from safetensors.torch import load_file, save_file
    import torch.nn.functional as F
    from stack import Net, Optim, PlainVAE, dpm, patch, unpatch
    from spatial_circuits import captions as cap_mod, scenes as sc
    from spatial_circuits.metrics import prompt_set
    from spatial_circuits.render import render
    from spatial_circuits.text import RandomTokenEncoder
    dev = torch.device(a.device)
    cuda = dev.type == "cuda"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    sync = torch.cuda.synchronize if cuda else (lambda: None)
    out = Path(a.out)
    scratch = "/dev/shm" if os.path.isdir("/dev/shm") and os.statvfs("/dev/shm").f_bavail * os.statvfs("/dev/shm").f_frsize > 4e9 else "/tmp"
    out.mkdir(parents=True, exist_ok=True)
    if cuda:
        say(torch.__version__, torch.cuda.get_device_name(), os.cpu_count(), "cores")
    assets = load_file(Path(a.assets) / "assets.safetensors")
    depth, heads, dim = map(int, a.size.split(","))
    dt = {"bf16": torch.bfloat16, "fp32": torch.float32}[a.dtype]
    g = torch.Generator(dev).manual_seed(1234)
    torch.manual_seed(4321)

    # -- pictures: N scenes and the same with their two objects exchanged in place
    config = json.loads((Path(a.vae) / "config.json").read_text())
    vae = PlainVAE(load_file(Path(a.vae) / "diffusion_pytorch_model.safetensors"), config["latents_mean"], config["latents_std"], dev)
    N = a.scenes
    base = sc.sample(torch.arange(N, device=dev), 0)

    def encode(s):
        return patch(torch.cat([vae.encode(render(s[i:i + 512])) for i in range(0, len(s), 512)]))
    bank = torch.cat([encode(base), encode(base.replace(xy=base.xy.flip(1)))]).half()       # [2 N, 64, 16]
    sync()
    say("encoded", len(bank), "deviation", round(bank.float().std().item(), 3))

    # -- text
    caps = ["", *cap_mod.all_captions()]
    T = 16

    def table(run):
        name = run["encoder"]
        if name.startswith("rte"):
            tb = RandomTokenEncoder(position=name == "rte", base=run["base"], center=run["center"], seed=run["table"]).encode(caps)
            e, m = tb.embeddings, tb.mask
            if run["fused"]:                                    # a share of a relation's vector on shape2's token, its norm kept
                from spatial_circuits.scenes import RELATIONS
                r = torch.randn(len(RELATIONS), e.shape[-1], generator=torch.Generator().manual_seed(1000 + run["table"]))
                r = r / r.norm(dim=1, keepdim=True) * 7.5
                for i, cap in enumerate(caps[1:], 1):
                    rel = cap_mod.parse(cap).relation
                    for j, role in enumerate(tb.roles[i]):
                        if role == "shape2":
                            new = e[i, j] + run["fused"] * r[rel]
                            e[i, j] = new * e[i, j].norm() / new.norm()
        else:
            z = load_file(Path(a.assets) / f"text-{name}.safetensors")
            e, m = z["embeddings"].float(), z["mask"].bool()
        e, m = F.pad(e, (0, 0, 0, T - e.shape[1])), F.pad(m, (0, T - m.shape[1]))
        return e, (~m).float() * -10000.0

    # -- how many runs fit
    waves = [[{**DEFAULT, **r} for r in json.loads(Path(f).read_text())][:a.max_runs] for f in a.runs.split(",")]
    runs = waves[0]
    assert all(len(w) == len(runs) for w in waves)
    cached = {}
    for r in (r for w in waves for r in w):
        key = (r["encoder"], r["base"], r["center"], r["table"], r["fused"])
        if key not in cached:
            cached[key] = table(r)
        r["_key"] = key
    real = {k: v[0].shape[-1] for k, v in cached.items()}                                   # embedding width; zeros fill it to the widest
    din = max(real.values())
    keys = list(cached)
    tables = torch.stack([F.pad(cached[k][0], (0, din - real[k])) for k in keys]).to(dev).to(dt)                       # [E, 1057, T, din]
    biases = torch.stack([cached[k][1] for k in keys]).to(dev)
    V = tables.shape[1]
    tables, biases = tables.view(-1, T, din), biases.view(-1, T)
    say("text tables", len(keys), tuple(tables.shape))
    net = Net(depth, heads, dim, din, assets[f"pos{dim}"].to(dev), dt)
    B, C, S = a.batch, a.chunk, a.steps
    rel_first = (sc.PHRASES_PER_RELATION.cumsum(0) - sc.PHRASES_PER_RELATION).to(dev)
    rel_count = sc.PHRASES_PER_RELATION.to(dev)
    reverse, upper_first = sc.REVERSE.to(dev), sc.UPPER_FIRST.to(dev)
    order = torch.randperm(2 * N, generator=torch.Generator().manual_seed(5)).to(dev)

    def prep(plan, off, tab_of, s0, n):
        """Tables of n steps: times, weights, picture rows, text rows, noise rows, each [n, R, B]."""
        R = len(off)
        s = torch.arange(s0, s0 + n, device=dev)
        rnd = lambda *z: torch.rand(*z, generator=g, device=dev)
        quad = plan.quad[s][..., None]                                                     # [n, R, 1]
        b = torch.arange(B, device=dev)

        def both(plain, grouped):                                                          # [n, R, B], [n, R, B / 4]
            return torch.where(quad, grouped.repeat_interleave(4, -1), plain)
        u = both((rnd(n, R, B).argsort(-1) + rnd(n, R, B)) / B, (rnd(n, R, B // 4).argsort(-1) + rnd(n, R, B // 4)) / (B // 4))
        mix = plan.mix[s]                                                                  # [n, R, NC, 3]
        w = mix[..., 0] / mix[..., 0].sum(-1, keepdim=True)
        cum = w.cumsum(-1)
        k = (u[..., None] >= cum[:, :, None, :-1]).sum(-1)                                 # [n, R, B]
        take = lambda z: z.gather(-1, k)
        frac = ((u - take(cum) + take(w)) / take(w).clamp(min=1e-9)).clamp(0, 1)
        lo, hi = take(mix[..., 1]), take(mix[..., 2])
        time_ = (lo + (hi - lo) * frac).clamp(1e-3, 1.0)
        floor = time_.maximum(plan.cap.view(1, R, 1))
        weight = floor ** plan.p[s][..., None]
        weight = torch.where(plan.is_e.view(1, R, 1) > 0, weight * ((1 - time_) ** 2 + time_ ** 2) / floor ** 2, weight)
        plain = order[(s[:, None, None] * B + off.view(1, R, 1) + b) % (2 * N)]
        grouped = (order[(s[:, None, None] * (B // 4) + off.view(1, R, 1) + b // 4) % (2 * N)] % N)
        scene = torch.where(quad, grouped, plain % N)
        ex = torch.where(quad, (b % 4 >= 2).expand_as(plain), plain >= N)
        picture = scene + N * ex
        relation = torch.where(ex, reverse[base.relation[scene]], base.relation[scene])
        s1, s2, c1 = base.shape[scene, 0], base.shape[scene, 1], base.color[scene, 0]
        draws = both(rnd(n, R, B), rnd(n, R, B // 4))
        n1 = both(rnd(n, R, B), rnd(n, R, B // 4)) >= plan.drop[s][..., None]
        n2 = both(rnd(n, R, B), rnd(n, R, B // 4)) >= plan.drop[s][..., None]
        swap = torch.where(quad, (b % 2 == 1).expand_as(ex), torch.isin(relation, upper_first) != (rnd(n, R, B) < plan.up[s][..., None]))
        relation = torch.where(swap, reverse[relation], relation)
        s1, s2 = torch.where(swap, s2, s1), torch.where(swap, s1, s2)
        c1 = torch.where(swap, 1 - c1, c1)
        n1, n2 = torch.where(swap, n2, n1), torch.where(swap, n1, n2)
        phrase = rel_first[relation] + (draws * rel_count[relation]).long()
        pair = s1 * 2 + (s2 - s1) % 3 - 1
        row = 1 + ((phrase * 6 + pair) * 2 + c1) * 4 + n1 * 2 + n2 * 1
        row = torch.where(both(rnd(n, R, B), rnd(n, R, B // 4)) < 0.1, 0, row) + tab_of.view(1, R, 1) * V
        noise = torch.where(quad, b - b % 4, b).expand_as(plain) + torch.arange(R, device=dev).view(1, R, 1) * B
        return time_, weight, picture, row, noise

    # -- probe and prompts
    M = 128
    ps = sc.sample(torch.arange(M), 90_001, named=torch.ones(M, 2, dtype=torch.bool))
    first = sc.PHRASES_PER_RELATION.cumsum(0) - sc.PHRASES_PER_RELATION
    turned = torch.tensor([2, 3, 0, 1, 5, 4, 7, 6])
    third = torch.stack([ps.shape[:, 0], 3 - ps.shape.sum(1)], 1)
    told = {"right": ps, "shape": ps.replace(shape=third), "binding": ps.replace(color=ps.color.flip(1)),
            "axis": ps.replace(phrase=first[turned[ps.relation]]), "order": ps.replace(phrase=first[sc.REVERSE[ps.relation]])}
    probe_rows = torch.stack([1 + cap_mod.caption_index(s) for s in told.values()]).flatten().to(dev)    # [5 M]
    px0 = encode(ps.to(dev))
    peps = patch(torch.randn(M, 4, 16, 16, generator=torch.Generator().manual_seed(90_001))).to(dev)
    TIMES = (0.999, 0.97, 0.9, 0.75)
    prompts = prompt_set("264")[:a.prompts]
    prompt_rows = torch.tensor([caps.index(p) for p in prompts], device=dev)
    start_noise = patch(torch.stack([torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(i)) for i in range(len(prompts))])).to(dev)
    sigmas, times = assets["sigmas"].tolist(), (assets["times"] / 1000).tolist()

    class Trainer:
        def __init__(self, runs, compiled, graphed):
            self.R = R = len(runs)
            self.plan = None
            self.load(runs)
            self.params = [p.clone().requires_grad_() for p in self.init]
            self.opt = Optim(net, self.params, ns_dtype=torch.bfloat16 if cuda else torch.float32)
            z = lambda dtype: torch.zeros(C, R, B, dtype=dtype, device=dev)
            self.feed = [z(torch.float32) + 0.98, z(torch.float32) + 1, z(torch.long), z(torch.long), z(torch.long)]
            self.step_ = torch.zeros((), dtype=torch.long, device=dev)
            self.loss_sum, self.norm_sum = torch.zeros(R, device=dev), torch.zeros(R, device=dev)
            is_x0, is_e = self.plan.is_x0.view(R, 1, 1, 1), self.plan.is_e.view(R, 1, 1, 1)

            def loss_fn(sq, ff1, ff2, rest, x0, eps, t, w, text, bias):
                tt = t[..., None, None]
                xt = (1 - tt) * x0 + tt * eps
                o = net(sq, ff1, ff2, rest, xt, t, text, bias)
                o = as_x0(o, xt, tt, is_x0, is_e)
                return ((o - x0).square().mean((2, 3)) * w).mean(1)
            self.loss_fn = torch.compile(loss_fn, dynamic=False, backend=a.backend) if compiled else loss_fn
            self.graphed, self.graph = graphed and cuda, None

        def load(self, runs):
            self.runs, old = runs, self.plan
            self.plan = Plan(runs, S, dev, torch)
            if old is not None:                             # the captured graph reads the old tensors
                for k in ("lrm", "lra", "tm", "ema", "is_x0", "is_e"):
                    getattr(old, k).copy_(getattr(self.plan, k))
                    setattr(self.plan, k, getattr(old, k))
            self.off = torch.tensor([(r["seed"] * 7919 + 0) * 101 % (2 * N) for r in runs], device=dev)
            self.tab_of = torch.tensor([keys.index(r["_key"]) for r in runs], device=dev)
            self.init = net.init([r["seed"] if r["init"] is None else r["init"] for r in runs], dev, [real[r["_key"]] for r in runs])

        def one(self):
            R = self.R
            c = (self.step_ % C).view(1)
            t, w, pic, row, nz = (f.index_select(0, c)[0] for f in self.feed)
            x0 = bank.index_select(0, pic.flatten()).view(R, B, 64, 16).float()
            eps = torch.randn(R * B, 64, 16, device=dev).index_select(0, nz.flatten()).view(R, B, 64, 16)
            text = tables.index_select(0, row.flatten()).view(R, B, T, din)
            bias = biases.index_select(0, row.flatten()).view(R, B, T)
            loss = self.loss_fn(*self.params, x0, eps, t, w, text, bias)
            grads = torch.autograd.grad(loss.sum(), self.params)
            s = self.step_.view(1)
            pl = self.plan
            norm = self.opt.step(grads, pl.lrm.index_select(0, s)[0], pl.lra.index_select(0, s)[0], pl.tm.index_select(0, s)[0], pl.ema,
                                 self.step_.float())
            self.loss_sum += loss.detach()
            self.norm_sum += norm
            self.step_ += 1

        def ready(self):
            """Warm up, capture, reset."""
            for f, x in zip(self.feed, prep(self.plan, self.off, self.tab_of, 0, C)):
                f.copy_(x)
            if self.graphed:
                side = torch.cuda.Stream()
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):
                    for _ in range(3):
                        self.one()
                torch.cuda.current_stream().wait_stream(side)
                sync()
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    self.one()
                self.graph = graph
            else:
                for _ in range(2):
                    self.one()
            self.reset()

        def reset(self):
            self.opt.reset(self.init)
            self.step_.zero_(), self.loss_sum.zero_(), self.norm_sum.zero_()

        def advance(self):
            self.graph.replay() if self.graph else self.one()

        def speed(self, n=12 if cuda else 1):
            self.advance(), sync()
            t0 = time.time()
            for _ in range(n):
                self.advance()
            sync()
            self.reset()
            return (time.time() - t0) / n

        def apply(self, xt, t, rows):
            """EMA weights; xt [R, n, 64, 16], sigma = t float, rows [n]."""
            R, n = xt.shape[:2]
            idx = (rows[None] + self.tab_of[:, None] * V).flatten()
            text, bias = tables.index_select(0, idx).view(R, n, T, din), biases.index_select(0, idx).view(R, n, T)
            return net(*self.opt.ema, xt, torch.full((R, n), t, device=dev), text, bias)

        @torch.no_grad()
        def probe(self):
            result = {}
            is_x0, is_e = self.plan.is_x0.view(-1, 1, 1, 1), self.plan.is_e.view(-1, 1, 1, 1)
            for t in TIMES:
                xt = ((1 - t) * px0 + t * peps).repeat(5, 1, 1)[None].expand(self.R, -1, -1, -1).contiguous()
                o = self.apply(xt, t, probe_rows)
                o = as_x0(o, xt, torch.full((1, 1, 1, 1), t, device=dev), is_x0, is_e)
                e = (o - px0.repeat(5, 1, 1)).square().mean((2, 3)).view(self.R, 5, M).mean(2)          # [R, 5]
                result[t] = torch.cat([e[:, :1], e[:, 1:] / e[:, :1] - 1], 1)
            return torch.stack([result[t] for t in TIMES], 1).tolist()                                  # [R][times][err, shape, ...]

        @torch.no_grad()
        def pictures(self, tag):
            """Sample, decode, hand to the scorers; returns async results, one a run."""
            n = len(prompts)
            is_x0, is_e = self.plan.is_x0.view(-1, 1, 1, 1), self.plan.is_e.view(-1, 1, 1, 1)
            rows = torch.cat([torch.zeros_like(prompt_rows), prompt_rows])

            def predict(x, sigma, t):
                xx = torch.cat([x, x], 1)
                o = self.apply(xx, t, rows)
                null, cond = as_x0(o, xx, torch.full((1, 1, 1, 1), sigma, device=dev), is_x0, is_e).chunk(2, 1)
                return null + 4.5 * (cond - null)
            z = dpm(predict, start_noise[None].expand(self.R, -1, -1, -1), sigmas, times)
            jobs = []
            for r in range(self.R):
                images = vae.decode(unpatch(z[r])).cpu().numpy()
                path = f"{scratch}/gs_{os.getpid()}_{tag}_{time.time_ns()}.npy"
                np.save(path, images)
                jobs.append(pool.apply_async(score_job, ((path, prompts),)) if pool else score_job((path, prompts)))
            return jobs

    # -- choose: compiled or not, how many runs
    def build(n, compiled, graphed):
        t0 = time.time()
        tr = Trainer(runs[:n], compiled, graphed)
        tr.ready()
        sp = tr.speed()
        say(f"R={n} compile={compiled} graph={graphed}: {sp * 1000:.2f} ms a step, {n * B / sp:.0f} images/s, ready in {time.time() - t0:.0f} s,",
            f"{torch.cuda.max_memory_allocated() / 2 ** 30:.0f} GiB" if cuda else "")
        return tr, sp

    def attempt(n, options):
        for compiled, graphed, manual in options:
            try:
                net.manual_cross = manual
                return build(n, compiled, graphed)
            except Exception as error:
                say("FAILED", (compiled, graphed, manual), repr(error)[:1500])
                if cuda:
                    try:
                        sync()
                        torch.cuda.empty_cache()
                    except Exception as e2:
                        say("device lost", repr(e2)[:300])
                        raise
        raise SystemExit("nothing worked")
    options = [(1, a.graph, False)] * a.compile + [(0, gr, m) for gr in ([1, 0] if a.graph else [0]) for m in (False, True)]
    n = len(runs)
    trainer, sp = attempt(n, options)
    left = a.budget - (time.time() - START) - 12
    need = (sp * S * 1.12 + 4) * len(waves)
    if need > left and n > 8:
        n = max(8, int(n * left / need))
        say(f"only {n} of {len(runs)} runs fit {left:.0f} s")
        trainer = None
        if cuda:
            torch.cuda.empty_cache()
        trainer, sp = attempt(n, options)
    waves = [w[:n] for w in waves]
    R = n

    def wave(runs, out):
        out.mkdir(parents=True, exist_ok=True)
        log = [{"run": {k: v for k, v in r.items() if k != "_key"}, "curve": [], "pictures": []} for r in runs]
        meta = {"card": torch.cuda.get_device_name() if cuda else "cpu", "dtype": a.dtype, "steps": S, "batch": B, "ms_a_step": sp * 1000, "runs": R,
                "images_per_s": R * B / sp, "times": TIMES, "columns": ["error", *list(told)[1:]], "size": a.size}
        pend, snaps = [], {}
        snap_of = [i for i, r in enumerate(runs) if r["name"] in a.snapshots.split(",")]

        def dump():
            for step, jobs in list(pend):
                got = [j.get() if pool and j.ready() else None if pool else j for j in jobs]
                if all(x is not None for x in got):
                    for r, x in enumerate(got):
                        log[r]["pictures"].append({"step": step, **x})
                    pend.remove((step, jobs))
            meta["seconds"] = round(time.time() - START, 1)
            (out / "log.json").write_text(json.dumps({"meta": meta, "runs": log}))
        sample_at = {int(x) for x in a.sample_at.split(",") if x} | {S}
        if warming:
            warming.wait(60)
        say("training", R, "runs")
        t_train, done = time.time(), 0
        if a.dump:
            torch.save({"feed": prep(trainer.plan, trainer.off, trainer.tab_of, 0, C), "bank": bank, "caps": caps, "V": V}, a.dump)
        while done < S:
            for f, x in zip(trainer.feed, prep(trainer.plan, trainer.off, trainer.tab_of, done, min(C, S - done))):
                f[:len(x)].copy_(x)
            for _ in range(min(C, S - done)):
                trainer.advance()
                done += 1
            late = time.time() - START > a.budget - 10 - R * 0.05
            if done % a.every == 0 or done == S or late:
                gains = trainer.probe()
                losses = (trainer.loss_sum / a.every).tolist()
                norms = (trainer.norm_sum / a.every).tolist()
                trainer.loss_sum.zero_(), trainer.norm_sum.zero_()
                for r in range(R):
                    log[r]["curve"].append([done, round(losses[r], 5), round(norms[r], 3), [[round(x, 6) for x in q] for q in gains[r]]])
            if snap_of and done % 80 == 0 and done <= 0.5 * S:
                for i in snap_of:
                    sd = net.state_dict(trainer.opt.ema, i, real[runs[i]['_key']])
                    snaps.setdefault(runs[i]["name"], {})[done] = {k: v.half() for k, v in sd.items() if "attn2" in k or "caption" in k}
            if done in sample_at or late:
                pend.append((done, trainer.pictures(done)))
            if done % 400 == 0 or done == S or late:
                dump()
                best = sorted(range(R), key=lambda r: -gains[r][0][4])[:4]
                say(done, "order at .999:", [(runs[r]["name"], round(gains[r][0][4], 4)) for r in best])
            if late and done < S:
                say("out of time at step", done)
                break
        sync()
        meta["train_seconds"] = round(time.time() - t_train, 1)
        say("trained in", meta["train_seconds"], "s:", round(done * R * B / meta["train_seconds"]), "images/s in all")
        for step, jobs in pend:
            if pool:
                [j.wait(30) for j in jobs]
        dump()
        last = [l["pictures"][-1] if l["pictures"] else {"loose": 0, "strict": 0} for l in log]
        rank = sorted(range(R), key=lambda r: -(last[r]["loose"] + 0.3 * last[r]["strict"]))
        keep = list(range(R)) if all(r.get("keep") for r in runs) else [r for r in rank[:a.save]]
        for part in range(0, len(keep), 4):
            blob = {}
            for r in keep[part:part + 4]:
                blob.update({f"{runs[r]['name']}|{k}": v.half() for k, v in net.state_dict(trainer.opt.ema, r, real[runs[r]['_key']]).items()})
            save_file(blob, (Path(a.keep) if a.keep else out) / f"weights{part // 4:02d}.safetensors")
        for name, s in snaps.items():
            save_file({f"{step}|{k}": v.contiguous() for step, sd in s.items() for k, v in sd.items()}, out / f"snapshots_{name}.safetensors")
        dump()
        say("name, then shape binding loose strict; order at .999 / .9 at a quarter, half, end")
        for r in rank:
            cv = log[r]["curve"]
            at = lambda q, i: round(cv[min(len(cv) - 1, int(len(cv) * q))][3][i][4], 4)
            tail = last[r]
            print(f"{runs[r]['name']:28s} " + " ".join(f"{tail.get(m, 0):.2f}" for m in ("shape", "unique_binding", "loose", "strict")),
                  " | ", *(at(q, 0) for q in (0.2, 0.3, 0.5, 1)), " | ", *(at(q, 2) for q in (0.3, 0.5, 1)),
                  " | ", *(p.get("loose") for p in log[r]["pictures"]), flush=True)

    for i, w in enumerate(waves):
        if i:
            if a.budget - (time.time() - START) < 30:
                say("no time for wave", i)
                break
            trainer.load(w)
            trainer.reset()
        wave(w, out / f"w{i}" if len(waves) > 1 else out)
    say("done")
    if pool:
        pool.terminate()


if __name__ == "__main__":
    main()

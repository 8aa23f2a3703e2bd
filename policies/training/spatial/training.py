"""One training of vega-nano-spatial: what it begins with, its steps, and what it writes; it survives a kill."""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from policies.checkpoints import check_scene_model, checkpoint_sha256, find_small
from policies.files.json_config import read_json
from policies.nano.policy import VegaPolicy, load_vega_policy
from policies.spatial.models import nano_folder
from policies.spatial.nano.config import SpatialConfig
from policies.spatial.nano.model import build_network, load_network, save_network
from policies.spatial.nano.network import CAMERA, SpatialNetwork
from policies.spatial.nano.nouns import Nouns
from policies.training.curves import LOG, add_line, cut_log, draw
from policies.training.dataset import recolour
from policies.training.optimisation import (
    average_in,
    begun_with,
    check_decided,
    check_finite,
    decisive,
    going_on,
    save_state,
    set_learning_rate,
    smoothed,
)
from policies.training.spatial.films import (
    Films,
    WorldTokens,
    categories,
    film_files,
    films_sha256,
    read_films,
    video_digests,
)
from policies.training.spatial.learner import Batch, SpatialLearner, labels
from policies.types import VegaError
from policies.world_simulator.simulator import LatentWorldSimulator

STATE_FILE, FILMS_FILE = "training_state.pt", "films.json"
TOLD_EVERY = 25  # steps
EVALUATED = 256  # frames held out, at most


def chosen_films(args: argparse.Namespace) -> tuple[list[Path], list[Path]]:
    """Those to learn from and those held out: what there was when this training began, whatever came since.

    Raises VegaError where --data names other folders, or --held-out another split.
    """
    path = args.output / FILMS_FILE
    if not path.exists() or not (args.output / STATE_FILE).exists():  # what ended before its first state begins anew
        train = film_files(args.data, "train")
        held_out = film_files(args.data, args.held_out) if args.held_out else []
        lists = {"train": list(map(str, train)), "held_out": list(map(str, held_out)), "split": args.held_out}
        path.write_text(json.dumps(lists, indent=1) + "\n")
    chosen = read_json(path)
    train, held_out = ([Path(name) for name in chosen[part]] for part in ("train", "held_out"))
    split = chosen.get("split", _split(held_out, args.held_out))
    if split != args.held_out:
        raise VegaError(
            f"The training in {args.output} began with --held-out '{split}': give the same again, or another --output."
        )
    before, now = _folders(train), _folders(film_files(args.data, "train"))
    if before != now:
        raise VegaError(
            f"The training in {args.output} learns from films of {' '.join(sorted(map(str, before)))}: give these as "
            "--data, or another --output."
        )
    return train, held_out


def _split(files: Sequence[Path], asked: str) -> str:
    """Of which split these films are: `asked`, if they may be; for lists from before they named it."""
    if all(path.name.startswith(f"{asked}_") for path in files) and bool(files) == bool(asked):
        return asked
    return files[0].name.rsplit("_", 2)[0] if files else ""


def _folders(files: Sequence[Path]) -> set[Path]:
    """As --data names them."""
    return {path.resolve().parent.parent for path in files}


class Training:
    """One training: its parts, and the state that survives a kill."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        files, held_out = chosen_films(args)
        every = (*files, *held_out)
        digests = video_digests(every)
        self.decides = decisive(args, "held_out", "without_prior", "seed", "batch", "lr") | {
            "--data": hashlib.sha256(json.dumps([read_json(p) for p in every]).encode()).hexdigest()[:12],
            "--data (its films)": films_sha256(digests[p] for p in every)[:12],  # apart: older states do not have it
            "--world-simulator": checkpoint_sha256(str(args.world_simulator))[:12],
        }
        known = None if args.init is None else load_network(scene_folder(args.init))
        warm = None if args.from_scratch or args.init is not None else load_vega_policy(find_small(args.warm_start))
        self.decides |= begun_with(known, warm)
        check_decided(args.output / STATE_FILE, self.decides)  # before tokens of all frames
        control = "off" if args.without_prior else "on"
        config = SpatialConfig(name=args.name, things=categories(files), world_control=control)
        simulator = LatentWorldSimulator.from_pretrained(args.world_simulator, dtype=torch.float32)
        network = build_network(config, simulator)
        if warm is not None:
            take_encoder(network, warm)
        if known is not None:
            take_known(network, known)
        self.films = read_films(files, config, args.output, digests)
        self.held = read_films(held_out, config, args.output, digests) if held_out else None
        self.tokens: dict[int, WorldTokens] = {}
        if not args.without_prior:
            own = network.world.simulator_of(CAMERA)
            both = [films for films in (self.films, self.held) if films is not None]
            self.tokens = {id(films): WorldTokens(own, films, args.output) for films in both}
        self.learner = SpatialLearner(network, Nouns(config.things).ids())
        self.average = copy.deepcopy(self.learner)
        self.optimizer = torch.optim.AdamW(self.learner.parameters(), lr=args.lr, weight_decay=0.03, betas=(0.9, 0.98))
        self.step, self.seconds, self.running = 0, 0.0, dict[str, float]()
        self._read_back()

    def _read_back(self) -> None:
        path, log = self.args.output / STATE_FILE, self.args.output / LOG
        if path.exists():
            names = ("learner", "ema", "optimizer", "seconds", "running")
            with going_on(path, *names, decides=self.decides) as state:
                self.learner.load_state_dict(state["learner"])
                self.average.load_state_dict(state["ema"])
                self.optimizer.load_state_dict(state["optimizer"])
                self.step, self.seconds, self.running = state["step"], state["seconds"], state["running"]
        cut_log(log, self.step)

    def batch(self, films: Films, index: NDArray[np.int64], rng: np.random.Generator, augment: bool) -> Batch:
        mirrored = rng.random(len(index)) < 0.5 * augment
        views = [films.pictures[i][:, ::-1] if m else films.pictures[i] for i, m in zip(index, mirrored, strict=True)]
        pictures = recolour(torch.from_numpy(np.stack(views)), rng, augment)
        config = self.learner.config
        f_gen = {CAMERA: self.tokens[id(films)].batch(index, mirrored)} if self.tokens else {}
        return Batch(pictures=pictures, f_gen=f_gen, **labels(films, index, mirrored, config.focal))

    def run(self) -> None:
        args, films = self.args, self.films
        parameters = sum(p.numel() for p in self.learner.parameters())
        print(
            f"{parameters / 1e6:.2f} M parameters, {len(films.names)} films of {len(films.film)} frames, "
            f"{len(self.learner.config.things)} kinds of things, from step {self.step} of {args.steps}", flush=True,
        )  # fmt: skip
        start, before = time.monotonic() - self.seconds, self.step
        while self.step < args.steps:
            self.running = self.optimise()
            self.seconds = time.monotonic() - start
            if self.step % TOLD_EVERY == 0:
                left = self.seconds / self.step * (args.steps - self.step)
                print(f"{self.step}/{args.steps} {_told(self.running)} | {left / 60:.1f} min left", flush=True)
            if self.step % args.save_every == 0 or self.step == args.steps:
                self.save()
        if before >= args.steps:
            print("Nothing is left to do: give more --steps, or another --output.", flush=True)

    def optimise(self) -> dict[str, float]:
        """One step; the parts of the loss, averaged over the last fifty or so."""
        args = self.args
        # Of the step alone, so that a training that goes on sees what it would have seen.
        rng = np.random.default_rng([args.seed, self.step])
        set_learning_rate(self.optimizer, self.step, args.steps, args.lr, warm_up=100, floor=0.02)
        index = rng.choice(len(self.films.film), size=args.batch, p=self.films.chances)
        batch = self.batch(self.films, index, rng, True)
        with torch.autocast("cpu", torch.bfloat16):
            loss, parts = self.learner(batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.learner.parameters(), 2.0)
        check_finite(self.step + 1, float(loss.detach()), float(norm))
        self.optimizer.step()
        self.step += 1
        average_in(self.average, self.learner, self.step, longest=0.998)
        return smoothed(self.running, parts)

    @torch.inference_mode()
    def evaluate(self, films: Films) -> dict[str, float]:
        """Mean of every part of the loss over frames spread over all films."""
        rng = np.random.default_rng(0)
        index = np.linspace(0, len(films.film) - 1, min(EVALUATED, len(films.film))).astype(np.int64)
        parts = np.array_split(index, max(len(index) // 64, 1))
        results = [self.average(self.batch(films, part, rng, False))[1] for part in parts]
        return {key: float(np.mean([float(r[key]) for r in results])) for key in results[0]}

    def save(self) -> None:
        """The model, the log and its picture, and last the state from which a training goes on."""
        args = self.args
        line: dict[str, Any] = {"step": self.step, "seconds": round(self.seconds, 1), "train": self.running}
        if self.held is not None:
            line["held_out"] = self.evaluate(self.held)
            print(f"held out: {_told(line['held_out'])}", flush=True)
        add_line(args.output / LOG, line)
        save_network(self.average.network, args.output)
        draw(args.output)
        save_state(
            args.output / STATE_FILE,
            {
                "learner": self.learner.state_dict(), "ema": self.average.state_dict(),
                "optimizer": self.optimizer.state_dict(), "step": self.step, "seconds": self.seconds,
                "running": self.running,
            },
            self.decides,
        )  # fmt: skip


def _told(parts: dict[str, float]) -> str:
    return " ".join(f"{key} {value:.3f}" for key, value in parts.items())


def scene_folder(name: str) -> Path:
    """Folder of a model of this kind by its shipped name, its own or a hub id.  Raises VegaError for another kind."""
    check_scene_model(name)
    if (folder := nano_folder(name)) is None:
        raise VegaError(f"The scene model '{name}' is none of this command's: give vega-nano-spatial or one's folder.")
    return folder


def take_encoder(network: SpatialNetwork, warm: VegaPolicy) -> None:
    """The encoder and the gate of a policy with this one's widths, as far as they fit; of its first camera."""
    policy = warm.state_dict()
    own = network.state_dict()
    camera = next(key for key in policy if key.startswith("semantic_encoder.encoders.")).split(".")[2]
    renamed = {key.replace(f"encoders.{camera}.", f"encoders.{CAMERA}."): value for key, value in policy.items()}
    fits = {k: v for k, v in renamed.items() if k in own and own[k].shape == v.shape and "film" not in k}
    network.load_state_dict(own | {k: v for k, v in fits.items() if k.startswith(("semantic_encoder.", "world."))})


def take_known(network: SpatialNetwork, known: SpatialNetwork) -> None:
    """All weights of another model of the same widths; words by what they are."""
    own, given = network.state_dict(), known.state_dict()
    words, table = (Nouns(n.config.things).word_ids for n in (network, known))
    embedding = own["nouns.embedding.weight"]
    for word, row in words.items():
        if word in table:
            embedding[row] = given["nouns.embedding.weight"][table[word]]
    network.load_state_dict(given | {"nouns.embedding.weight": embedding})

"""The evaluation of a run: what is measured, on which text, and the report of it."""

import copy
import dataclasses
import os
import re
from collections.abc import Callable
from pathlib import Path

from data_pipeline.sequences import held_out
from data_pipeline.sequences.batches import Sequences
from data_pipeline.storage.files import fingerprint, read_json, write_json
from data_pipeline.storage.progress import Progress, say
from data_pipeline.text.corpora import Reading, Skipped, read_documents
from experiments import workdirs
from experiments.jobs import continuations, decoder_start, facts, measurement, reading
from experiments.jobs.kept_losses import KeptLosses
from experiments.jobs.run import Run
from experiments.report import report
from retro_jax.devices import processes, sharding
from retro_jax.model import parameters
from retro_jax.runs import goodput
from retro_jax.training import retrofit


class Evaluation:
    """What measures a run and writes its report."""

    def __init__(self, run: Run):
        """Nothing is read or written yet."""
        self._run, self._cfg = run, run.cfg

    def evaluate(self) -> None:
        """Measures retrieval on, off and random on held-out text; writes the report."""
        with self._run.sole("evaluating"):
            self._evaluate()

    def _evaluate(self) -> None:
        size = self._cfg.evaluation.batch_size
        sharding.check_batch("evaluation.batch_size", size, self._run.mesh)
        if not self._cfg.evaluation.held_out and not self._run.has_held_out_text():
            say(f"{self._run.no_report}: the model is trained, and there is no report")
            return
        asked = set(self._cfg.evaluation.conditions)
        # Off alone is of a control, which is to read nothing.
        shows_enough = "on" in asked or asked <= {"off"}
        if self._is_reported and self._cfg.has_cca and not shows_enough:
            raise ValueError(
                "the report shows retrieval on, which evaluation.conditions does not name: "
                "add it, or give the results a file of their own "
                "(--config.evaluation.name=NAME)"
            )
        text = self._text()
        sequences = self._sequences_of(text)
        path = self._run.workdir / "evaluation" / f"{self.name}.json"
        path.parent.mkdir(exist_ok=True)
        results = read_json(path) or {}
        if results.get("fingerprint") == self._judged(
            self._run.last_step(), text
        ) and all(name in results for name in self._shown()):
            say("evaluation: up to date")
            self._tell(path)
            return
        with goodput.measured(path.parent, writes=processes.is_first()) as stopwatch:
            stopwatch.enter("evaluation")
            results = self._measure(sequences, text, path, results)
            stopwatch.write()
            self._tell(path)

    def _tell(self, path: Path) -> None:
        """Writes the run's report, or says what another measurement has found."""
        if not processes.is_first():
            return
        if not self._is_reported:
            say(f"{measurement.in_words(read_json(path) or {})}\nresults: {path}")
        report.write(self._run.workdir, self._run.database, self.name)

    @property
    def name(self) -> str:
        """What the file of results is called."""
        cfg = self._cfg.evaluation
        stem = os.path.basename(os.path.normpath(cfg.held_out)).split(".")[0]
        # The name of a file may be anything.
        plain = re.sub(r"[^\w.-]+", "-", stem).strip("-.") if cfg.held_out else ""
        return cfg.name or plain or report.RUN

    @property
    def _is_reported(self) -> bool:
        """Whether the report of the run shows what is measured."""
        return self.name == report.RUN

    def _text(self) -> held_out.Text | None:
        """The text that is searched for anew; None where the dataset holds all that is read."""
        cfg, database = self._cfg.evaluation, self._run.database
        if cfg.held_out:
            skipped = Skipped()
            reading = Reading(
                self._cfg.data.text_column, self._cfg.data.max_document_bytes
            )
            return held_out.text_of(
                read_documents(cfg.held_out, skipped, reading=reading),
                database.tokenizer,
                database.chunk_len,
                detokenise=cfg.detokenise,
            )
        most = max(cfg.neighbours, default=0)
        is_wide = most > self._cfg.data.num_neighbours
        if cfg.stride_chunks or cfg.database_shares or is_wide or not self._is_reported:
            return held_out.text_of_split(database.snapshot, cfg.split)
        return None

    def _sequences_of(self, text: held_out.Text | None) -> Sequences | held_out.HeldOut:
        cfg = self._cfg
        if text is None:
            return self._run.sequences(cfg.evaluation.split)
        return held_out.HeldOut(
            text,
            self._run.database.snapshot,
            cfg.data,
            stride=cfg.evaluation.stride_chunks,
        )

    def _judged(self, step: int | None, text: held_out.Text | None = None) -> str:
        """A fingerprint of what is measured, on what, and how."""
        evaluation = dataclasses.asdict(self._cfg.evaluation)
        told: list = [evaluation, step, self._run.identity()]
        if text is not None:
            told += [text.fingerprint, self._run.database.fingerprint]
        return fingerprint(told)

    def _shown(self) -> dict[str, Callable]:
        """What the report shows besides conditions, and what makes it."""
        if not self._is_reported:
            return {}
        made_by: dict[str, Callable] = {"samples": self._samples}
        if self._cfg.evaluation.num_facts and self._cfg.has_cca:
            made_by["facts"] = self._facts
        return made_by

    def _measure(
        self,
        sequences: Sequences | held_out.HeldOut,
        text: held_out.Text | None,
        path: Path,
        results: dict,
    ) -> dict:
        """Makes what is missing in the results, and writes them whenever there is more."""
        run, params = self._run.restored()
        if processes.is_first() and self._is_reported:
            # How it is measured: in other things it may differ from how it was trained.
            parts = ("data", "evaluation")
            workdirs.record_settings(self._cfg, self._run.workdir, parts)
        step = run["step"]
        judged = self._judged(step, text)
        if results.get("fingerprint") != judged:
            limits = self._limits(params, step)
            so_far = path.with_name(f".{path.stem}-so-far")
            kept = KeptLosses(so_far, fingerprint([judged, str(limits)]))
            results = measurement.conditions(
                measurement.Measured(
                    cfg=self._cfg,
                    params=params,
                    mesh=self._run.mesh,
                    sequences=sequences,
                    database=self._run.database,
                    untrained=self._untrained(params),
                    encodings=self._run.encodings,
                    limits=limits,
                    text=text,
                    kept=kept,
                )
            )
            results |= {"fingerprint": judged, "step": step}
            results |= {"init_from": run.get("init_from")}
            results |= {"settings": dataclasses.asdict(self._cfg.evaluation)}
            _write_if_first(path, results)  # so that what fails below does not cost it
            kept.clear()
        for name, make in self._shown().items():
            if name not in results:
                results[name] = make(params)
                _write_if_first(path, results)
        return results

    def _limits(self, params: parameters.Parameters, step: int) -> reading.Limits:
        """What a retrofit reads, as it was chosen for the model of this step."""
        if not self._run.by_decoder:
            return reading.ALL
        path = self._run.workdir / reading.FILE
        known = read_json(path) or {}
        processes.wait_for_all("the limits of reading are read")
        if known.get("step") != step and not self._is_reported:
            raise ValueError(
                f"{self._run.workdir} has no limits of reading for step {step}, which are chosen "
                "on the run's own validation split: measure the run as it is first, with "
                f"`retro evaluate --workdir={self._run.workdir}`"
            )
        if known.get("step") != step:
            _write_if_first(path, {**self._chosen_limits(params), "step": step})
            processes.wait_for_all("the limits of reading are written")
        return reading.limits(self._cfg, self._run.workdir)

    def _chosen_limits(self, params: parameters.Parameters) -> dict:
        """Limits by the validation split, as JSON; empty if it is not to be asked."""
        cfg = copy.deepcopy(self._cfg)
        cfg.evaluation.split = "validation"
        cfg.evaluation.max_sequences = cfg.retrofit.limit_sequences
        if not cfg.evaluation.max_sequences:
            return {}
        sequences = self._run.sequences("validation")
        if not len(sequences):
            return {}
        return measurement.choose_limits(
            measurement.Measured(
                cfg=cfg,
                params=params,
                mesh=self._run.mesh,
                sequences=sequences,
                database=self._run.database,
                encodings=self._run.encodings,
            )
        )

    def _untrained(self, params: parameters.Parameters) -> parameters.Parameters | None:
        """The parameters of a retrofit's step 0, where its decoder reads neighbours."""
        cfg = self._cfg
        if not (self._run.by_decoder and cfg.train.freeze):
            return None
        new = retrofit.new_names(cfg.model)
        backbone = {name: array for name, array in params.items() if name not in new}
        return decoder_start.with_cca(cfg, backbone, self._run.mesh)

    def _facts(self, params: parameters.Parameters) -> dict:
        """Answers to questions of fact, as the report shows them."""
        asking = facts.Asking(
            cfg=self._cfg,
            params=params,
            mesh=self._run.mesh,
            tokenizer=self._run.database.tokenizer,
            encodings=self._run.encodings,
            limits=reading.limits(self._cfg, self._run.workdir),
        )
        return facts.measure(
            asking, self._run.database, self._run.workdir / "evaluation"
        )

    def _samples(self, params: parameters.Parameters) -> list[dict]:
        """Continuations of held-out documents, as the report shows them."""
        made = continuations.of_held_out(
            self._cfg,
            params,
            self._run.database,
            reading.limits(self._cfg, self._run.workdir),
        )
        found = []
        with Progress("samples", self._cfg.evaluation.num_samples, "texts") as progress:
            for sample in made:
                found.append(sample)
                progress.advance(1)
        return found


def _write_if_first(path: Path, results: dict) -> None:
    """Writes JSON in process 0 alone: all processes share the workdir."""
    if processes.is_first():
        write_json(path, results)

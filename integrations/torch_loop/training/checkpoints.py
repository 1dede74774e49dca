"""Checkpoints of a transformers Trainer that are whole or not there, and exact resuming."""

import shutil
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import rotate_checkpoints

from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.run.checkpoints import (
    ExtraState,
    newest_whole,
    publish,
    read_state,
    remove_leftovers,
    require_whole,
    staging_of,
    write_state,
)
from amidmath.integrations.common.storage.full_disk import saving
from amidmath.integrations.common.storage.whole_files import staged_dir
from amidmath.integrations.torch_loop.training.unpickling import refuse_code


class WholeCheckpoints(Trainer):
    """A Trainer, to be mixed into one of TRL's, that resumes as if there had been no break.

    Checkpoints appear whole or not at all. Beside what transformers keeps, they hold the states
    of ``extra_states`` and the sums behind the logged figures, so that every later log line is
    the one that an unbroken run would write.

    With several processes each writes its files into one staging folder, which must be on a file
    system that they share; the main process puts it in place when all are done. A process that
    cannot write raises at once, and the launcher then ends the others.
    """

    _checkpoint: Path | None = None
    _rng_is_restored = False
    _staging: str | None = None
    _push: str | None = None

    def extra_states(self) -> dict[str, ExtraState]:
        """The states that are saved in every checkpoint and restored on resuming, by name.

        The names must be the same whenever a run goes on. A subclass adds its own to these: the
        logged figures, and the callbacks that have a state.
        """
        callbacks = self.callback_handler.callbacks
        stateful = {type(c).__name__: c for c in callbacks if isinstance(c, ExtraState)}
        return {"figures": _Figures(self), **stateful}

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Train, from a checkpoint if one is given (True: from the newest whole one).

        Raises:
            InputError: there is no such checkpoint, it is damaged, or it would run code.
        """
        folder = Path(str(self.args.output_dir))
        if resume_from_checkpoint is True:
            self._checkpoint = newest_whole(folder, PartialState().print)
            if self._checkpoint is None:
                raise InputError(f"--resume_from_checkpoint: {folder} holds no checkpoint")
        else:
            self._checkpoint = Path(resume_from_checkpoint) if resume_from_checkpoint else None
            if self._checkpoint is not None and self.is_world_process_zero():
                require_whole(self._checkpoint)
        if self._checkpoint is not None:
            refuse_code(self._checkpoint)
        self._rng_is_restored = False
        if self.args.should_save:
            remove_leftovers(folder)
        self.accelerator.wait_for_everyone()
        watch = _Watch(self)
        eval_on_start = self.args.eval_on_start
        self.args.eval_on_start = eval_on_start and self._checkpoint is None
        self.add_callback(watch)
        try:
            resume = None if self._checkpoint is None else str(self._checkpoint)
            return super().train(resume, *args, **kwargs)
        finally:
            self.callback_handler.callbacks.remove(watch)
            self.args.eval_on_start = eval_on_start

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        run = Path(str(super()._get_output_dir(trial)))
        checkpoint = run / f"checkpoint-{self.state.global_step}"
        stage = staging_of(checkpoint)
        if self.args.should_save:
            shutil.rmtree(stage, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._staging, self._push = str(stage), None
        try:
            with saving(f"checkpoint-{self.state.global_step}", stage):
                super()._save_checkpoint(model, trial)
                built = stage / checkpoint.name
                built.mkdir(parents=True, exist_ok=True)
                states = {name: state.state() for name, state in self.extra_states().items()}
                write_state(built, self._state_name(), states)
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    # transformers has looked for the best checkpoint in the staging folder.
                    self._find_best(run, checkpoint)
                    self.state.save_to_json(str(built / TRAINER_STATE_NAME))
                    publish(checkpoint)
        finally:
            self._staging = None
        self.accelerator.wait_for_everyone()
        self._find_best(run, checkpoint)
        if self._push is not None:
            super()._push_from_checkpoint(str(checkpoint))
        if self.args.should_save:
            rotate_checkpoints(
                str(run), self.args.save_total_limit, self.state.best_model_checkpoint
            )

    def _find_best(self, run: Path, newest: Path) -> None:
        """Set where the best checkpoint is, if there is one; ``newest`` is about to be there."""
        if self.state.best_global_step:
            best = run / f"checkpoint-{self.state.best_global_step}"
            exists = best == newest or best.is_dir()
            self.state.best_model_checkpoint = str(best) if exists else None

    def _get_output_dir(self, trial: Any) -> str:
        return self._staging or super()._get_output_dir(trial)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        self._push = checkpoint_folder  # it is uploaded from its own place

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        """As transformers does, without its pickle of the arguments: run.json has them."""
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            (Path(output_dir or str(self.args.output_dir)) / TRAINING_ARGS_NAME).unlink()

    def _state_name(self) -> str:
        """Of the files with the extra states; every process has its own."""
        several = self.args.world_size > 1
        return "distillation_state" + (f"_{self.args.process_index}" if several else "")

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Batches of one optimiser step; the first ones after a break are drawn as without it.

        transformers restores the random states after this method. They are restored at its end,
        so that a subclass may draw from them when it changes the batches.
        """
        batches = super().get_batch_samples(*args, **kwargs)
        self._load_rng_state(None if self._checkpoint is None else str(self._checkpoint))
        return batches

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None and not self._rng_is_restored:
            super()._load_rng_state(checkpoint)
            self._rng_is_restored = True

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """An epoch, unless all steps are done: transformers would train one more."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)

    def _restore(self) -> None:
        """Put everything back that a checkpoint holds beside what transformers reads."""
        self.state.compute_steps(self.args, self.state.max_steps)  # how often is free to change
        if self._checkpoint is None:
            return
        folder = Path(str(self.args.output_dir))
        self._find_best(folder, self._checkpoint)
        states = read_state(self._checkpoint, self._state_name())
        wanted = self.extra_states()
        if states.keys() != wanted.keys():
            raise InputError(
                f"--resume_from_checkpoint: {self._checkpoint} holds the states of "
                f"{', '.join(sorted(states))}; this run has {', '.join(sorted(wanted))}"
            )
        for name, owner in wanted.items():
            owner.restore(states[name])


class _Figures:
    """The sums behind what transformers and TRL log, which begin at zero whenever a run goes on."""

    def __init__(self, trainer: WholeCheckpoints) -> None:
        """Remember whose they are."""
        self.trainer: Any = trainer

    def state(self) -> dict[str, Any]:
        """The sums."""
        trainer = self.trainer
        return {
            "loss_since_logged": float(trainer._tr_loss),  # float32, which a float holds exactly
            "loss_until_logged": float(trainer._total_loss_scalar),
            "last_logged": trainer._globalstep_last_logged,
            "first_step": trainer._initial_global_step,
            "is_training": trainer.model.training,  # TRL logs by it
            "total_tokens": getattr(trainer, "_total_train_tokens", 0),
            "metrics": {
                mode: {name: list(map(float, values)) for name, values in lists.items()}
                for mode, lists in getattr(trainer, "_metrics", {}).items()
            },
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on adding to them."""
        trainer = self.trainer
        trainer._tr_loss.fill_(state["loss_since_logged"])
        trainer._total_loss_scalar = state["loss_until_logged"]
        trainer._globalstep_last_logged = state["last_logged"]
        trainer._initial_global_step = state["first_step"]
        trainer.model.train(state["is_training"])
        if hasattr(trainer, "_total_train_tokens"):
            trainer._total_train_tokens = state["total_tokens"]
        for mode, lists in state["metrics"].items():
            trainer._metrics[mode] = defaultdict(list, lists)


class _Watch(TrainerCallback):
    """Restores when training begins, and lets an epoch end before its last step is saved.

    transformers saves after the last step, then evaluates and logs what is due at the end of an
    epoch, and never does so when it goes on from that checkpoint.
    """

    def __init__(self, trainer: WholeCheckpoints) -> None:
        """Remember whose it is."""
        self.trainer = trainer
        self.save_is_due = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restore."""
        self.trainer._restore()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put off a save where the epoch ends."""
        ends = control.should_training_stop or float(state.epoch or 0.0).is_integer()
        if control.should_save and ends:
            self.save_is_due, control.should_save = True, False

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save what was put off."""
        control.should_save = control.should_save or self.save_is_due
        self.save_is_due = False


def save_model(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write a model and its tokenizer in Hugging Face format; the folder has all of it or none.

    Args:
        folder: where to; an earlier one is replaced.
        model: what to write.
        tokenizer: beside it.
        weights: the model's, where an engine has shared them out; None for its own.

    Raises:
        DiskFullError: there is no room for it.
    """
    with staged_dir(folder) as stage, saving(folder.name, stage):
        model.save_pretrained(stage, state_dict=weights)
        tokenizer.save_pretrained(stage)

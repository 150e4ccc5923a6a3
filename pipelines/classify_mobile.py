"""Trains an image classifier and takes it to small, fast, verified `.tflite` files.

  python pipelines/classify_mobile.py                              the embedded Fashion-MNIST subset, some 7 minutes
  python pipelines/classify_mobile.py --dataset=path/to/photos     one sub-folder of images a class
  python pipelines/classify_mobile.py --dataset=path/to/photos --model=my.keras --train_epochs=0

Four models come out: `base`; `s80`, 80% of the weights zero; `c50`, channels removed until half of the
multiply-accumulates are left; `c50_s80`, both. `--control` adds a narrower network, trained as long as c50;
`--quantize_aware_epochs` trains each on with the rounding of int8 (`c50_qat`); `--prune_steps` cuts c50 in several
steps with training between, and `--distill` has the base teach whatever is fine-tuned. Each is written in every recipe
that suits it (sparse ones need zeros, what was trained with rounding becomes int8), verified against its Keras model on
every runtime that is set up, evaluated on the test images and timed here.
A run that was killed goes on where it was when the same command is given again.

Exit codes: 0 done; 2 bad input, one line says what; 3 no file meets --max_drop, --max_bytes and --max_latency_ms.
"""

from __future__ import annotations  # naming a Keras-side class in a signature must not import TensorFlow

import dataclasses
from pathlib import Path
from typing import Any

import classify_flags
import export_show
import export_stages
import shared_flags
from absl import app, flags

import mobileprune as mp
from mobileprune import options, sparsity_options
from mobileprune.console import parse_flags
from mobileprune.errors import SettingsError

FLAGS = flags.FLAGS


def classify() -> mp.Manifest:
    """The whole job; every stage is a function of the library, and `run` keeps what is finished."""
    dataset, base = load()
    fine = mp.TrainSettings(
        FLAGS.finetune_epochs,
        FLAGS.batch_size,
        FLAGS.finetune_learning_rate,
        FLAGS.augment,
        FLAGS.seed,
        fused_norms=FLAGS.fused_norms,
    )
    first = dataclasses.replace(fine, epochs=FLAGS.train_epochs, learning_rate=FLAGS.learning_rate)
    rounded = dataclasses.replace(
        fine, epochs=FLAGS.quantize_aware_epochs, learning_rate=FLAGS.quantize_aware_learning_rate
    )
    exporting = shared_flags.export_settings("classify_mobile.py", max_drop=FLAGS.max_drop)
    images = dataset.calibration.images(FLAGS.calibration_images)
    mp.check_recipes(FLAGS.recipes, images)
    options.check(base)  # a target that cannot be met is an error now, not after the training
    sparsity_options.check(base)
    s80, c50 = f"s{100 * sparsity_options.share():.0f}", options.cut_name()  # by default; the names follow the flags
    both = f"{c50}_{s80}"
    run = mp.Run(out_dir(), settings(dataset), steps((s80, c50, both), dataset, first, fine, rounded), FLAGS.overwrite)

    def reports(task: mp.Task, before: int = 0) -> dict[str, Any]:
        """Of a training that follows others in its stage: `before` of the stage's epochs are over."""
        batches = before * -(-len(dataset.train) // FLAGS.batch_size)

        def finished(epoch: int, figures: dict[str, float]) -> None:
            task.note(f"epoch {before + epoch}, validation {figures['val_accuracy']:.1%}")
            task.epoch(before + epoch, figures)

        return {"on_batch": lambda batch: task.advance(batches + batch), "on_epoch": finished}

    def fit(
        model: Any,
        how: mp.TrainSettings,
        task: mp.Task,
        stage: str,
        *callbacks: Any,
        teaching: mp.Distillation | None = None,
        folder: Path | None = None,
        before: int = 0,
    ) -> Any:
        return mp.train(
            model,
            dataset,
            how,
            checkpoint=folder or task.folder,
            callbacks=[*callbacks, *tensorboard(stage)],
            distillation=teaching,
            **reports(task, before),
        )

    def tune(model: Any, how: mp.TrainSettings, task: mp.Task, stage: str, *callbacks: Any, **part: Any) -> Any:
        teaching = mp.Distillation(models["base"], FLAGS.temperature, FLAGS.distill) if FLAGS.distill else None
        return fit(model, how, task, stage, *callbacks, teaching=teaching, **part)

    def sparsify(model: Any, task: mp.Task, stage: str) -> Any:
        if sparsity_options.starts_with_zeros() or not fine.epochs:
            zeros = sparsity_options.prune_one_shot(model, options.pruning_images(images))
            if not fine.epochs:
                return zeros
            return mp.strip_pruning(tune(mp.hold_zeros(zeros), fine, task, stage, mp.UpdatePruningStep()))
        pattern = sparsity_options.pattern()
        schedules = sparsity_options.schedules(model, fine.steps(len(dataset.train)))
        if FLAGS.sparsity_backend == "tfmot":
            return mp.train_with_tfmot(
                model, dataset, fine, schedules, checkpoint=task.folder, **reports(task), **pattern
            )
        wrapped = mp.prune_low_magnitude(
            model, schedules, nested=not pattern, allocation=sparsity_options.allocation("uniform"), **pattern
        )
        return mp.strip_pruning(tune(wrapped, fine, task, stage, mp.UpdatePruningStep()))

    def cut(model: Any) -> Any:
        some = options.pruning_images(images)
        return mp.recalibrate(options.prune(model, options.plan(model, some, FLAGS.seed), some), images)

    def cut_and_tuned(model: Any, task: mp.Task, stage: str) -> Any:
        if FLAGS.prune_steps == 1:
            return tune(cut(model), fine, task, stage)
        epochs = mp.share_epochs(fine.epochs, FLAGS.prune_steps)
        some = options.pruning_images(images)

        def finetune(present: Any, step: int, folder: Path | None) -> Any:
            before = sum(epochs[: step - 1])
            own = dataclasses.replace(fine, epochs=epochs[step - 1], start=before, cycle=fine.epochs)
            again = mp.recalibrate(present, images)
            return tune(again, own, task, f"{stage}_{step}", folder=folder, before=before)

        return mp.prune_iteratively(
            model,
            steps=FLAGS.prune_steps,
            finetune=finetune,
            compensate=options.compensation(),
            checkpoint=task.folder / "steps",
            **options.planning(options.importance(), some, FLAGS.seed),
        ).model

    def narrow(models: dict[str, Any]) -> Any:
        mp.set_seed(FLAGS.seed)  # its fresh weights must not depend on where a killed run went on
        return mp.narrower(models["base"], mp.model_facts(models[c50]).macs)

    def with_rounding(model: Any, stage: str) -> Any:
        from mobileprune.quantize_aware import quantize_aware

        def aware(task: mp.Task) -> Any:
            held = mp.hold_zeros(model) if mp.sparsity(model) else model
            return tune(quantize_aware(held, images), rounded, task, stage)

        return run.model(stage, aware, measure, rounded.epochs)

    def measure(model: Any) -> dict[str, Any]:
        return {**export_stages.facts_of(model), "accuracy": mp.validate(model, dataset)}

    with run.progress:
        models = {
            "base": run.model(
                "base", lambda task: fit(base, first, task, "base", *regularisers()), measure, first.epochs
            )
        }
        models[s80] = run.model(s80, lambda task: sparsify(models["base"], task, s80), measure, fine.epochs)
        models[c50] = run.model(c50, lambda task: cut_and_tuned(models["base"], task, c50), measure, fine.epochs)
        # Channels first, then the zeros: those that are left stay, and what is missing to the target is added.
        models[both] = run.model(both, lambda task: sparsify(cut(models[s80]), task, both), measure, fine.epochs)
        if FLAGS.control:
            as_long = dataclasses.replace(first, epochs=first.epochs + fine.epochs)
            models["control"] = run.model(
                "control", lambda task: fit(narrow(models), as_long, task, "control"), measure, as_long.epochs
            )
        if FLAGS.quantize_aware_epochs:
            for name, model in list(models.items()):
                models[f"{name}_qat"] = with_rounding(model, f"{name}_qat")
        return export_stages.export(run, models, dataset, exporting)


def load() -> tuple[mp.Dataset, Any]:
    """The data, and a model for it: not trained yet, or from a file."""
    natural = mp.default_preprocess(FLAGS.dataset, FLAGS.image_size, FLAGS.fit)
    given = mp.load_model(FLAGS.model) if mp.is_model_file(FLAGS.model) else None
    contract = options.contract(mp.input_contract(FLAGS.model, natural, FLAGS.weights, given))
    if FLAGS.image_size and FLAGS.image_size not in (contract.height, contract.width):
        raise SettingsError(f"{FLAGS.model} takes {contract.height}×{contract.width} images; leave out --image_size.")
    if FLAGS.max_drop is not None and "float32" not in FLAGS.recipes:
        raise SettingsError("--max_drop is measured against base float32: name float32 among --recipes.")
    if FLAGS.distill and FLAGS.sparsity_backend == "tfmot":
        raise SettingsError("--distill needs --sparsity_backend=mobileprune: the toolkit trains without a teacher.")
    if 0 < FLAGS.finetune_epochs < FLAGS.prune_steps:
        raise SettingsError(
            f"--prune_steps={FLAGS.prune_steps} cuts share --finetune_epochs={FLAGS.finetune_epochs}: some have no "
            "training. Give as many epochs as steps, or none."
        )
    if FLAGS.regularise != "none" and not FLAGS.train_epochs:
        raise SettingsError(
            f"--regularise={FLAGS.regularise} acts while the base trains: give --train_epochs=1 or more."
        )
    mp.set_seed(FLAGS.seed)
    dataset = mp.load_dataset(FLAGS.dataset, contract, seed=FLAGS.seed, strict=FLAGS.strict)
    if FLAGS.limit_images:
        dataset = dataset.limited(FLAGS.limit_images)
    model = mp.build_model(FLAGS.model, contract, len(dataset.labels), FLAGS.weights, given)
    if given is not None:
        if not FLAGS.train_epochs and mp.output_layer(model) != mp.output_layer(given):
            raise SettingsError(
                f"{FLAGS.model} has no head for the {len(dataset.labels)} classes of the data, so it gets a fresh one, "
                "which must be trained: give --train_epochs=1 or more."
            )
        model.trainable = True  # layers that were frozen when it was made must heal after a cut, too
    if FLAGS.sparse_ready:
        # Before any training, which heals what is not exact.
        ready = mp.sparse_ready(model)
        for change in ready.changes:
            print(f"{change.layer}: {change.what}{'' if change.exact else ' (not exact, heals in training)'}")
        model = ready.model
    return dataset, model


def out_dir() -> Path:
    """The run's folder."""
    default = Path("tflite_models") / f"{mp.short_name(FLAGS.dataset)}_{mp.short_name(FLAGS.model)}"
    return Path(FLAGS.out_dir) if FLAGS.out_dir else default


def settings(dataset: mp.Dataset) -> dict[str, Any]:
    """All that the models depend on; what only the files depend on, `export` looks after."""
    return {**shared_flags.model_settings(classify_flags.FREE), "data": dataset.digest}


def steps(
    tuned: tuple[str, ...],
    dataset: mp.Dataset,
    first: mp.TrainSettings,
    fine: mp.TrainSettings,
    rounded: mp.TrainSettings,
) -> dict[str, int]:
    """The stages in order, with about how long each takes in training steps."""
    images = len(dataset.train)
    control = {"control": first.steps(images) + fine.steps(images)} if FLAGS.control else {}
    work = {"base": max(1, first.steps(images)), **dict.fromkeys(tuned, max(1, fine.steps(images))), **control}
    aware = {f"{name}_qat": rounded.steps(images) for name in work} if rounded.epochs else {}
    return {**work, **aware, **export_stages.STEPS}


def regularisers() -> list[Any]:
    """The callback that prepares the cut while the base trains, if one was asked for."""
    if FLAGS.regularise == "none":
        return []
    kind = mp.GroupLasso if FLAGS.regularise == "group_lasso" else mp.BatchNormL1
    return [kind(FLAGS.regularise_strength)]


def tensorboard(stage: str) -> list[Any]:
    """The callback that writes a stage's training curves, if they were asked for."""
    if not FLAGS.tensorboard:
        return []
    from keras.callbacks import TensorBoard

    return [TensorBoard(out_dir() / "tensorboard" / stage)]


def main(arguments: list[str]) -> int:
    classify_flags.apply_preset()
    limits = mp.Limits(FLAGS.max_drop, FLAGS.max_bytes, FLAGS.max_latency_ms)
    return export_show.run_pipeline(arguments, classify, out_dir, limits)


if __name__ == "__main__":
    classify_flags.define()
    for module in (classify_flags, shared_flags, options, sparsity_options):
        flags.adopt_module_key_flags(module)  # so that --help lists them
    app.run(main, flags_parser=parse_flags)

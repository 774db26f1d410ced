"""The table from old keys to new ones. A key of one section only stands with it: ``dataset.name``, ``wandb.*``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedgen.migrate.values import (
    Reader,
    Remark,
    device,
    flag,
    folds,
    groups,
    names,
    number,
    one_of,
    samples,
    seed,
    switch,
    text,
    whole,
)
from fedgen.strategy_settings import STRATEGIES

MAPPINGS = ("generator_class_groups", "class_labels", "class_remapping")  # their values are mappings, not sections


NULL = Remark("null is as good as no key", changed=False)


@dataclass(frozen=True)
class Key:
    """What becomes of an old key.

    Attributes
    ----------
    new : str
        The key here; empty where there is none.
    read : Reader
        Turns the old value into the new one.
    note : str
        What changed in meaning, or why there is no counterpart. Of a key that is true or false, it is about true. What
        keys that are decided together have to say, the decision says where it applies.
    node : str
        The key of ``nodes.N`` here, for what may stand in a node's entry.
    joint : bool
        Decided together with other keys: `fedgen.migrate.decisions`.
    unless : str
        An old key that counts instead where both are there.
    null : Any
        The old value that null stood for, or what is said of null.
    """

    new: str = ""
    read: Reader = lambda value: value
    note: str = ""
    node: str = ""
    joint: bool = False
    unless: str = ""
    null: Any = NULL


def none(note: str) -> Key:
    """Return the row of a key that has no counterpart."""
    return Key(note=note)


GENERATORS = one_of("vae", "conditioned_vae", "multimodal_vae", "gan", "gaussian", multimodal="multimodal_vae")
DATASETS = one_of("folder", "sounds", esc50="esc50", esc_50="esc50", esc10="esc50", esc_10="esc50")
PARTITIONS = one_of("iid", "dirichlet", pat="by_class", dir="dirichlet")
AGGREGATION = one_of("none", "avg", "kd", weighted_avg="avg")
ALGORITHM = one_of(*STRATEGIES, feda2v=Remark("FedA2V is what fedgen does; strategy= chooses the aggregation", False))

LENGTH = Remark("samples had the training length; here they get the encoder's, unless generator.output_length is set")
GROUP = "it counted only in the entry of a node, with generator_granularity=per_group"
HOW = "none: mode=standalone; avg, weighted_avg: strategy=fedavg; kd: global_training=distil"
TEACHERS = "global_training=distil; it counted only with global_model_train=true"
SHARED = "it counted only with generator_only_mode; sharing=shared works in any mode"
RESET = "for sharing=shared: a node's own generators keep to its classes"
EARLIER_RUN = "here checkpoint.load=RUN names the folder of an earlier run, or resume=RUN continues it"
LOADING = (
    "here checkpoint.load=RUN names the folder of an earlier run: give it on the command line. Generators of the "
    "predecessor are pickles, which are never loaded: train them anew with mode=train_generators"
)
SPLIT = "clips are split by folds alone: data.test_fold is held out, all others train"
DOWNLOAD = "data=esc50 reads audio/ and meta/esc50.csv, as they are downloaded; data=folder a folder for each class"
PER_HEAD = "all heads share one optimiser: adapter.training.lr, adapter.training.weight_decay"
COUNT = "folds count from 1 here and from 0 there; exactly one is held out"
REST = "all folds but data.test_fold train"
SAME = "the same of every node: all of its clips, as partition says"
SHARED_OUT = "a class that several nodes list is shared out, no clip twice, drawn from seed"
ALWAYS = "adapters and results are always saved in the run folder"
IMAGES = "no images are made in a run"
METRICS = "every node and the server write to metrics.jsonl in the run folder"
TRACKING = "runs are recorded in their run folder"
EARLIER = "of the code that the predecessor grew from"
ENCODER = "encoder= chooses the encoder, target= what the adapters learn; models are not named one by one"

TABLE: dict[str, Key] = {
    # which generator
    "generator_type": Key("generator", GENERATORS, joint=True),
    "use_conditioned_vae": Key("generator", flag, joint=True),
    "generator_granularity": Key("granularity", one_of("unified", "per_class", "per_group"), node="granularity"),
    "generator_class_groups": Key("granularity.groups", groups, node="groups"),
    "generator_class_group": Key("nodes.N.groups", text, GROUP, node="groups", joint=True),
    "generator_train_classes": Key(
        "nodes.N.classes", names, "the node's adapters keep to these classes too", node="classes"
    ),
    "generator_training_sequence_length": Key("generator.training_length", whole),
    "generator_target_sequence_length": Key(
        "generator.training_length",
        whole,
        "an old name of generator_training_sequence_length; in its first versions it was the length of samples, which "
        "is generator.output_length here",
    ),
    "generator_output_sequence_length": Key("generator.output_length", whole, null=LENGTH),
    "use_learned_upsampling": Key("generator.upsampling", switch("learned", "linear")),
    # how generators are trained
    "generator_training_epochs": Key("generator.training.epochs", whole),
    "generator_augmentation": Key("generator.training.noise", flag, "false is no noise", joint=True),
    "generator_augmentation_noise": Key(
        "generator.training.noise",
        number,
        "relative to the deviation of the inputs, which are standardised here",
        joint=True,
    ),
    "generator_learning_rate": Key("generator.training.lr", number),
    "generator_weight_decay": Key("generator.training.weight_decay", number),
    "generator_batch_size": Key("generator.training.batch_size", whole),
    "generator_validation_frequency": none("generator.training.validation and .patience stop the training early"),
    # what a run does
    "generator_training_mode": Key("mode", flag, joint=True),
    "generator_only_mode": Key("mode", flag, joint=True),
    "use_pretrained_generators": Key("mode", flag, LOADING, joint=True),
    "train_adapters": Key("mode", flag, joint=True),
    "adapter_aggregation_mode": Key("mode, strategy, global_training", AGGREGATION, HOW, joint=True),
    "global_model_train": Key("mode, global_training", flag, joint=True),
    "global_model_train_from_nodes_adapters": Key("global_training", flag, TEACHERS, joint=True),
    "use_generator": none("mode says whether generators are used"),
    "adapter_aggregation_method": none("adapter_aggregation_mode is the key"),
    "generate_embeddings_only": none("`fedgen prepare` computes embeddings, once"),
    # training on the server
    "global_model_train_epochs": Key("global_training.epochs", whole),
    "kd_training_epochs": Key("global_training.epochs", whole),
    "kd_learning_rate": Key("global_training.lr", number),
    "kd_samples_per_class": Key("synthesis.samples_per_class", samples),
    "global_model_train_from_generator": none("generators are trained on nodes; the server gets their samples"),
    "global_model_train_from_nodes_audio_embeddings": none("real embeddings never leave a node"),
    "global_model_train_inputs": none("the server trains on synthetic samples alone"),
    # samples
    "synthetic_samples_per_class": Key("synthesis.samples_per_class", samples, node="samples_per_class", null="auto"),
    # sharing
    "shared_generator_in_only_mode": Key("sharing", flag, SHARED, joint=True),
    "reset_generator_on_class_change": Key("sharing.reset_on_class_change", flag, RESET, joint=True),
    # checkpoints
    "generator_checkpoint_dir": Key("checkpoint.dir", text),
    "generator_checkpoint_base_name": Key("checkpoint.base_name", text),
    "generator_checkpoint_frequency": Key("checkpoint.frequency", whole),
    "generator_save_checkpoint": Key("checkpoint.save", flag),
    "generator_load_checkpoint": Key(
        "checkpoint.load", switch(Remark(LOADING), Remark("nothing is loaded without checkpoint.load", False)), LOADING
    ),
    "generator_checkpoint_path": Key("checkpoint.dir, checkpoint.base_name", text, joint=True),
    "pretrained_generator_path": none(LOADING),
    "adapter_load_checkpoint": Key(
        "checkpoint.load",
        switch(Remark(EARLIER_RUN), Remark("nothing is loaded without checkpoint.load", False)),
        EARLIER_RUN,
    ),
    "adapter_save_checkpoint": none(ALWAYS),
    "adapter_checkpoint_dir": none(ALWAYS),
    "adapter_checkpoint_base_name": none(ALWAYS),
    "adapter_checkpoint_frequency": none(ALWAYS),
    "adapter_checkpoint_per_type": none(ALWAYS),
    "checkpoint_name": none(ALWAYS),
    "embeddings_checkpoint_dir": none("data.store names the folder of embeddings"),
    "store_audio_embeddings": none("embeddings are always kept, in data.store"),
    "audio_embedding_file_name": none("data.store names the folder of embeddings"),
    "use_saved_audio_embeddings": none("embeddings are always kept, in data.store"),
    # the federation
    "rounds": Key("rounds", whole),
    "num_rounds": Key("rounds", whole),
    "global_rounds": Key("rounds", whole),
    "local_epochs": Key("adapter.training.epochs", whole),
    "num_clients": Key("partition.nodes", whole),
    "num_nodes": Key("partition.nodes", whole),
    "nodes": Key("partition.nodes", whole),
    "algorithm": Key("strategy", ALGORITHM),
    "join_ratio": none("every node takes part in every round"),
    "eval_gap": none("the global adapters are evaluated in every round"),
    "model_aggregation": none("strategy= chooses how adapters are aggregated"),
    "compute_global_mean_from_class_means": none("no mean outputs are exchanged"),
    # training of adapters
    "adapters_learning_rate": Key("adapter.training.lr", number),
    "adapters_weight_decay": Key("adapter.training.weight_decay", number),
    "learning_rate": Key("adapter.training.lr", number, unless="adapters_learning_rate"),
    "weight_decay": Key("adapter.training.weight_decay", number, unless="adapters_weight_decay"),
    "batch_size": Key(
        "adapter.training.batch_size",
        whole,
        "of adapters on nodes alone: generator.training and global_training have a batch_size of their own",
    ),
    "adapter_dropout": Key("adapter.dropout", number),
    "optimizer": none("adapters and generators train with AdamW"),
    "momentum": none("adapters and generators train with AdamW"),
    "learning_rate_schedule": none("adapter.training.warmup, then a cosine over the phase"),
    "adapters_learning_rate_schedule": none("adapter.training.warmup, then a cosine over the phase"),
    "optimizer_clip_gradients": none("adapter.training.clip is the largest gradient norm, always kept"),
    **{f"{head}_adapter_{key}": none(PER_HEAD) for head in ("clip", "t5") for key in ("learning_rate", "weight_decay")},
    **{f"{head}_adapter_learning_rate_schedule": none(PER_HEAD) for head in ("clip", "t5")},
    "use_act_loss": none("adapter.training.mse_weight and .contrastive_weight weigh the losses"),
    "use_text_loss": none("adapter.training.mse_weight and .contrastive_weight weigh the losses"),
    "use_image_loss": none("adapter.training.mse_weight and .contrastive_weight weigh the losses"),
    "text_losses_summed": none("the losses of the heads are always summed"),
    "use_cls_token_only": none("adapters see every token"),
    # models
    "diffusion_type": Key("target", one_of("sd", "flux")),
    "audio_model_name": none(ENCODER),
    "image_model_name": none(ENCODER),
    "img_pipe_name": none(ENCODER),
    "img_lcm_lora_id": none(ENCODER),
    "audio_pipe_name": none(ENCODER),
    # data and nodes
    "dataset": Key("data", DATASETS),
    "dataset.name": Key("data", DATASETS),
    "dataset.path": Key("data.root", text, DOWNLOAD),
    "dataset_path": Key("data.root", text, DOWNLOAD),
    "esc50_path": Key("data.root", text, DOWNLOAD, joint=True),
    "dataset.partition": Key("partition", PARTITIONS, joint=True),
    "dataset.dir_alpha": Key("partition.alpha", number),
    "selected_classes": Key("data.classes, partition.assignment", names, node="classes", joint=True),
    "excluded_classes": Key("data.classes, partition.assignment", names, node="classes", joint=True),
    "test_folds": Key("data.test_fold", folds, COUNT, joint=True),
    "test_fold": Key("data.test_fold", folds, COUNT, joint=True),
    "train_folds": Key("data.test_fold", folds, REST, joint=True),
    "val_folds": none("generator.training.validation is the share of clips that decides when to stop"),
    "use_folds": Key("data.test_fold", switch(Remark(SPLIT, False), Remark(SPLIT)), SPLIT),
    **{name: none(SPLIT) for name in ("train_ratio", "val_ratio", "test_ratio", "split_ratio", "stratify")},
    "dataset_split": none(SAME),
    "num_samples": none(SAME),
    "limit_samples": none(SAME),
    "balance_classes": none(SAME),
    "samples_per_node": none(SAME),
    "node_split_id": none(SHARED_OUT),
    "node_split_seed": none(SHARED_OUT),
    "class_labels": none("class ids are global and follow from the data"),
    "class_remapping": none("class ids are global and follow from the data"),
    "pretext_tasks": none(EARLIER),
    "task_type": none(EARLIER),
    "dataset.image_size": none(EARLIER),
    "dataset.transform": none(EARLIER),
    "dataset.balance": none(SAME),
    # the machine
    "seed": Key("seed", seed),
    "device": Key("device", device),
    "device_id": none("CUDA_VISIBLE_DEVICES chooses the GPU"),
    "optimize_memory_usage": Key(
        "memory", switch("low", Remark("memory=auto picks from what is free; memory=high never saves memory"))
    ),
    "optimize_memory": none("optimize_memory_usage is the key"),
    "use_balooning": none("nothing is reserved on the GPU"),
    # what a run leaves behind
    "goal": none("hydra.run.dir names the run folder"),
    "experiment.name": none("hydra.run.dir names the run folder"),
    "runs": none("several runs are a sweep: fedgen run -m seed=0,1,2"),
    "debug": none("an error that is not the user's shows its traceback"),
    "wandb.*": none(TRACKING),
    "project": none(TRACKING),
    "entity": none(TRACKING),
    "wandb_mode": none(TRACKING),
    "no_wandb": none(TRACKING),
    **{
        f"{where}_{split}_metrics_splits": none(METRICS) for where in ("nodes", "server") for split in ("train", "test")
    },
    "train_metrics_splits": none(METRICS),
    "test_metrics_splits": none(METRICS),
    # images
    "generate_images_frequency": none(IMAGES),
    "generate_nodes_images_frequency": none(IMAGES),
    "generate_global_images_frequency": none(IMAGES),
    "generate_global_images_average_text_embeddings": none(IMAGES),
    "generate_low_memomy_footprint": none(IMAGES),
    "generate_from_clip_text_embeddings": none(IMAGES),
    "generate_from_t5_text_embeddings": none(IMAGES),
    "images_output_dir": none(IMAGES),
    "output_image_base_name": none(IMAGES),
    "save_generated_images_splits": none(IMAGES),
    "generation_split_for_metrics": none(IMAGES),
    # what the predecessor had from its own predecessors
    **{f"{section}.*": none(EARLIER) for section in ("model", "rewind", "fedgfe")},
    "feda2v.mode": none(EARLIER),
    "steps": none(EARLIER),
    "ablation_type": none(EARLIER),
    "controllability_type": none(EARLIER),
    "target_img_path": none(EARLIER),
    "img_out_path": none(EARLIER),
    "audio_out_path": none(EARLIER),
    "class_to_activate": none(EARLIER),
    "single_class": none(EARLIER),
    "_*": none("a comment"),
}

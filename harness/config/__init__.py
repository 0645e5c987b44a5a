"""Typed, validated configuration of a run: composed from YAML files under experiments/, overridden by dotted keys.

Each section of a configuration is a class; ``run`` has the whole. Other packages import from here.
"""

from harness.config.algorithm import ObjectiveConfig, RolloutConfig, num_trained_steps
from harness.config.composition import (
    EXPERIMENTS,
    KINDS,
    check_overrides,
    compose,
    dump,
    experiment_path,
    grid_of,
    leaves,
    load,
    located_overrides,
    merge,
    nest,
    parse_overrides,
    read_experiment,
    read_yaml,
    validate,
    verification,
)
from harness.config.identity import (
    NUMERICS_VERSION,
    depends_on_processes,
    inert_settings,
    keeps_capability_per_rank,
    numeric_settings,
    run_id,
)
from harness.config.messages import fields_at, nearest, validated
from harness.config.model import ModelConfig
from harness.config.names import check_name
from harness.config.optimizer import LoraConfig, OptimizerConfig
from harness.config.rewards import RewardConfig
from harness.config.run import EvaluationConfig, LoggingConfig, RunConfig, RuntimeConfig
from harness.config.section import Positive, Section, Seed
from harness.foundation.errors import ConfigError
from harness.foundation.places import ROOT

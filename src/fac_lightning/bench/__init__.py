"""``fac bench``: what training, hearing, losses, merging and preference training cost, each beside plainer ways."""

from fac_lightning.bench.base import Benchmark, BenchReport, BenchSettings, Cell, CellResult, Trial
from fac_lightning.bench.conversations import TRAIN_SHAPES, Conversation, make_conversations, pack
from fac_lightning.bench.dpo import DpoBenchmark
from fac_lightning.bench.encode import DenseEncoder, EncodeBenchmark
from fac_lightning.bench.flops import count_flops, flops_by_module
from fac_lightning.bench.growth import GrowthBenchmark
from fac_lightning.bench.headline import HeadlineBenchmark
from fac_lightning.bench.implementation import Implementation, load_implementation
from fac_lightning.bench.loss import LossBenchmark
from fac_lightning.bench.machine import check_device, machine_line, peak_flops
from fac_lightning.bench.memory import peak_memory, reset_resident_peak, resident_peak, resident_size
from fac_lightning.bench.merge import MergeBenchmark
from fac_lightning.bench.ours import OurImplementation
from fac_lightning.bench.parts import time_by_part
from fac_lightning.bench.runner import check_options, find_benchmark, run_benchmark
from fac_lightning.bench.show import report_dict, report_lines, report_table
from fac_lightning.bench.sizes import CONFIGS, BenchSizes, build_encoder, build_model, sizes_of
from fac_lightning.bench.train import TrainBenchmark
from fac_lightning.bench.words import WordTokenizer

__all__ = [
    "CONFIGS",
    "TRAIN_SHAPES",
    "BenchReport",
    "BenchSettings",
    "BenchSizes",
    "Benchmark",
    "Cell",
    "CellResult",
    "Conversation",
    "DenseEncoder",
    "DpoBenchmark",
    "EncodeBenchmark",
    "GrowthBenchmark",
    "HeadlineBenchmark",
    "Implementation",
    "LossBenchmark",
    "MergeBenchmark",
    "OurImplementation",
    "TrainBenchmark",
    "Trial",
    "WordTokenizer",
    "build_encoder",
    "build_model",
    "check_device",
    "check_options",
    "count_flops",
    "find_benchmark",
    "flops_by_module",
    "load_implementation",
    "machine_line",
    "make_conversations",
    "pack",
    "peak_flops",
    "peak_memory",
    "report_dict",
    "report_lines",
    "report_table",
    "reset_resident_peak",
    "resident_peak",
    "resident_size",
    "run_benchmark",
    "sizes_of",
    "time_by_part",
]

"""What the collector is told of the configuration."""

from dataclasses import dataclass, field

from exporter.modus.discovery import Selection
from exporter.runs.reader import Limits
from exporter.runs.runlog import RunLog
from exporter.runs.usagereader import UsageSettings


@dataclass(frozen=True, slots=True)
class Settings:
    """What a reload may change; times in seconds."""

    selection: Selection
    limits: Limits
    concurrency: int
    timeout_offset: float
    default_timeout: float
    min_interval: float
    reconcile_interval: float = 3600.0  # 0: never
    run_log: RunLog = field(default_factory=RunLog)
    usage: UsageSettings = field(default_factory=UsageSettings)
    show_created: bool = False

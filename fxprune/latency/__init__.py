"""Latency on the machine at hand: what each layer costs over widths, measured, kept on disk, and added up for a plan."""

from fxprune.latency.table import LatencyTable as LatencyTable
from fxprune.latency.table import measure as measure
from fxprune.latency.table import measure_subject as measure_subject
from fxprune.latency.table import seconds_of as seconds_of

"""Studies: declared grids of runs, resumable, with statistics, figures and a written report."""

from nbcore.study.grid import Arm, Block, StudyConfig, Wave
from nbcore.study.runner import run_study
from nbcore.study.studies import STUDIES

__all__ = ["STUDIES", "Arm", "Block", "StudyConfig", "Wave", "run_study"]

"""The page of a comparison (`nnUNetv2_pretrain_compare`) and the statistics on it."""

from nnunet_ssl.report.comparison.write import write_report

__all__ = ["write_report"]

"""What is done with package lists that are old."""

import tempfile
import unittest
from pathlib import Path
from unittest import mock

from machine import packages

OLD = ["6.1.0-47-cloud-amd64", "6.1.0-48-cloud-amd64"]
FRESH = [*OLD, "6.1.0-56-cloud-amd64", "6.12.99+deb12-cloud-amd64", "6.12.117+deb12-cloud-amd64"]


class Lists:
    """Package lists that offer what is old until they are refreshed; keeps what was downloaded."""

    def __init__(self, fresh=FRESH):
        self.offered, self.fresh, self.refreshed, self.downloaded = OLD, fresh, 0, []

    def refresh(self):
        self.refreshed += 1
        self.offered = self.fresh

    def download(self, names, into):
        into.mkdir(parents=True)
        self.downloaded += names

    def prepare(self, wanted):
        """`packages.prepare_kernel` with these lists and no kernel at hand."""
        with tempfile.TemporaryDirectory() as directory, mock.patch.multiple(
            packages, CACHE=Path(directory), KERNELS=Path(directory) / "kernels", offered_kernels=lambda: self.offered,
            refresh_lists=self.refresh, download=self.download, unpack=lambda archives, into: None,
        ):
            return packages.prepare_kernel(wanted, lambda line: None)[0]


class OldLists(unittest.TestCase):
    def test_a_kernel_that_old_lists_do_not_know_is_looked_for_in_fresh_ones(self):
        lists = Lists()
        self.assertEqual(lists.prepare("6.12"), "6.12.117+deb12-cloud-amd64")
        self.assertEqual((lists.refreshed, lists.downloaded), (1, ["linux-image-6.12.117+deb12-cloud-amd64"]))

    def test_a_kernel_that_they_know_is_taken_without_a_refresh(self):
        lists = Lists()
        self.assertEqual(lists.prepare("6.1"), "6.1.0-48-cloud-amd64")
        self.assertEqual(lists.refreshed, 0)

    def test_a_kernel_that_fresh_lists_do_not_know_either_is_unavailable_and_what_there_is_is_named(self):
        lists = Lists(fresh=OLD)
        with self.assertRaisesRegex(packages.Unavailable, r"no package has a kernel 6\.12; there are 6\.1\.0-47.*6\.1\.0-48"):
            lists.prepare("6.12")
        self.assertEqual((lists.refreshed, lists.downloaded), (1, []))

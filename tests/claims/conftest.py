"""The report that tests of its text read."""

from report_cases import report  # noqa: F401 - a fixture

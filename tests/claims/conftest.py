"""Report for the tests of its text."""

from report_cases import report  # noqa: F401 - a fixture

"""The formats of the log; apart, so that the command line knows them without loading anything."""

from enum import StrEnum


class LogFormat(StrEnum):
    text = "text"
    json = "json"

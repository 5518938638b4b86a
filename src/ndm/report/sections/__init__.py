"""The sections of a report, one per module, each with a function ``section`` from measurements to page elements."""

"""The admin API: one file per resource, one table of routes, one way in (`entry`)."""

PREFIX = "/api/v1"

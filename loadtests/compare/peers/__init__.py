"""The same bundle in other servers. These files run in the peers' own environments and processes, never in ours."""

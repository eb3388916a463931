"""ChannelGraph: coupled channels, groups, constraints and their reasons."""

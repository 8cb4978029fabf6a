"""Tools in which people vote; each a client, on ``adapters.http_client``, and what it tells us."""

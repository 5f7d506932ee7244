"""Makes calls with the official SDK, bce-python-sdk: the independent judge of the simulator.

usage: bce_sdk.py ENDPOINT ACCESS_KEY_ID SECRET_ACCESS_KEY < calls

Calls are lines of JSON, [method of BccClient, arguments …]. For each, a line of JSON is printed: {"answer": …} or
{"status": …, "code": …, "message": …, "request_id": …}.
"""

import json
import sys

from baidubce.auth.bce_credentials import BceCredentials
from baidubce.bce_client_configuration import BceClientConfiguration
from baidubce.exception import BceHttpClientError
from baidubce.retry.retry_policy import NoRetryPolicy
from baidubce.services.bcc.bcc_client import BccClient
from baidubce.utils import Expando


def plain(value):
    """The SDK's answers are objects; the test wants the JSON they were made from."""
    if isinstance(value, Expando) or hasattr(value, "metadata"):
        return {name: plain(part) for name, part in vars(value).items()}
    if isinstance(value, list):
        return [plain(part) for part in value]
    return value


def main():
    endpoint, access_key_id, secret_access_key = sys.argv[1:]
    client = BccClient(
        BceClientConfiguration(
            credentials=BceCredentials(access_key_id, secret_access_key),
            endpoint=endpoint,
            # The test counts calls.
            retry_policy=NoRetryPolicy(),
            connection_timeout_in_mills=10_000,
        )
    )
    for line in sys.stdin:
        method, *arguments = json.loads(line)
        try:
            result = {"answer": plain(getattr(client, method)(*arguments))}
        except BceHttpClientError as error:
            server = error.last_error
            result = {
                "status": server.status_code,
                "code": server.code,
                "message": str(server),
                "request_id": server.request_id,
            }
        print(json.dumps(result, default=str), flush=True)


main()

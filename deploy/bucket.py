"""Create MLflow's bucket in the S3-compatible store if it is missing; configured by boto3's environment variables."""

import os

import boto3
from botocore.exceptions import ClientError

NAME = "mlflow"

store = boto3.client("s3", endpoint_url=os.environ["MLFLOW_S3_ENDPOINT_URL"])
try:
    store.head_bucket(Bucket=NAME)
except ClientError as error:
    if error.response["Error"]["Code"] != "404":
        raise
    store.create_bucket(Bucket=NAME)
print(f"bucket {NAME} exists")

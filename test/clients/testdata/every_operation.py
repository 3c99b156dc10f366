"""Every operation of localkms by boto3.

The KMS is at URL, the caller and its Region are in the environment. What this
boto3 is too old for is printed as "LACKS <operation>" and left out.
"""

import os

import boto3
from botocore.exceptions import ClientError

kms = boto3.client("kms", endpoint_url=os.environ["URL"])
model = kms.meta.service_model


def lacks(operation, member=None):
    """Says whether this boto3 knows an operation, or a member of its request."""
    known = operation in model.operation_names and (
        member is None or member in model.operation_model(operation).input_shape.members
    )
    if not known:
        print("LACKS", operation if member is None else operation + "." + member)
    return not known


def refused(code, call, **request):
    try:
        call(**request)
    except ClientError as e:
        assert e.response["Error"]["Code"] == code, e
        assert e.response["ResponseMetadata"]["HTTPStatusCode"] == 400, e
        assert e.response["ResponseMetadata"]["RequestId"], e
        return
    raise AssertionError("not refused: want " + code)


def pages(operation, items, **request):
    """All items of a list, one a page."""
    found = []
    for page in kms.get_paginator(operation).paginate(PaginationConfig={"PageSize": 1}, **request):
        assert len(page[items]) <= 1, page
        found += page[items]
    return found


made = kms.create_key(Description="papers", Tags=[{"TagKey": "team", "TagValue": "a"}])["KeyMetadata"]
key = made["Arn"]
assert made["KeyState"] == "Enabled" and made["CreationDate"].year > 2000, made
other = kms.create_key()["KeyMetadata"]["KeyId"]
mac = kms.create_key(KeySpec="HMAC_512", KeyUsage="GENERATE_VERIFY_MAC")["KeyMetadata"]["KeyId"]
assert {k["KeyId"] for k in pages("list_keys", "Keys")} == {made["KeyId"], other, mac}
kms.update_key_description(KeyId=key, Description="more papers")
assert kms.describe_key(KeyId=key)["KeyMetadata"]["Description"] == "more papers"
kms.disable_key(KeyId=key)
refused("DisabledException", kms.encrypt, KeyId=key, Plaintext=b"x")
kms.enable_key(KeyId=key)

policy = kms.get_key_policy(KeyId=key, PolicyName="default")["Policy"]
kms.put_key_policy(KeyId=key, PolicyName="default", Policy=policy)
assert kms.list_key_policies(KeyId=key)["PolicyNames"] == ["default"]

kms.tag_resource(KeyId=key, Tags=[{"TagKey": "env", "TagValue": ""}, {"TagKey": "zone", "TagValue": "1"}])
kms.untag_resource(KeyId=key, TagKeys=["env"])
tags = kms.list_resource_tags(KeyId=key)["Tags"]
assert {t["TagKey"]: t["TagValue"] for t in tags} == {"team": "a", "zone": "1"}, tags

kms.create_alias(AliasName="alias/papers", TargetKeyId=other)
kms.update_alias(AliasName="alias/papers", TargetKeyId=key)
kms.create_alias(AliasName="alias/more", TargetKeyId=key)
assert [a["AliasName"] for a in pages("list_aliases", "Aliases", KeyId=key)] == ["alias/more", "alias/papers"]
kms.delete_alias(AliasName="alias/more")

context = {"tenant": "a", "object": "Größe"}
blob = kms.encrypt(KeyId="alias/papers", Plaintext=b"a secret", EncryptionContext=context)["CiphertextBlob"]
assert kms.decrypt(CiphertextBlob=blob, EncryptionContext=context)["Plaintext"] == b"a secret"
refused("InvalidCiphertextException", kms.decrypt, CiphertextBlob=blob)
moved = kms.re_encrypt(CiphertextBlob=blob, SourceEncryptionContext=context, DestinationKeyId=other)
assert moved["SourceKeyId"] == key and kms.decrypt(CiphertextBlob=moved["CiphertextBlob"])["Plaintext"] == b"a secret"
data_key = kms.generate_data_key(KeyId=key, KeySpec="AES_256")
assert kms.decrypt(CiphertextBlob=data_key["CiphertextBlob"])["Plaintext"] == data_key["Plaintext"]
wrapped = kms.generate_data_key_without_plaintext(KeyId=key, NumberOfBytes=64)
assert len(kms.decrypt(CiphertextBlob=wrapped["CiphertextBlob"])["Plaintext"]) == 64
pair = kms.generate_data_key_pair(KeyId=key, KeyPairSpec="RSA_2048")
assert kms.decrypt(CiphertextBlob=pair["PrivateKeyCiphertextBlob"])["Plaintext"] == pair["PrivateKeyPlaintext"]
assert "PrivateKeyPlaintext" not in kms.generate_data_key_pair_without_plaintext(KeyId=key, KeyPairSpec="ECC_NIST_P521")
assert len(kms.generate_random(NumberOfBytes=7)["Plaintext"]) == 7
tag = kms.generate_mac(KeyId=mac, MacAlgorithm="HMAC_SHA_512", Message=b"x")["Mac"]
assert kms.verify_mac(KeyId=mac, MacAlgorithm="HMAC_SHA_512", Message=b"x", Mac=tag)["MacValid"] is True
refused("KMSInvalidMacException", kms.verify_mac, KeyId=mac, MacAlgorithm="HMAC_SHA_512", Message=b"y", Mac=tag)
if not lacks("GetKeyLastUsage"):
    used = kms.get_key_last_usage(KeyId=mac)
    assert used["KeyLastUsage"]["Operation"] == "VerifyMac", used


def grant(name):
    return kms.create_grant(
        KeyId=key,
        GranteePrincipal=os.environ["GRANTEE"],
        RetiringPrincipal=os.environ["RETIRER"],
        Operations=["Decrypt", "DescribeKey"],
        Constraints={"EncryptionContextSubset": {"tenant": "a"}},
        Name=name,
    )


one, two = grant("one"), grant("two")
assert grant("one")["GrantId"] == one["GrantId"]
assert [g["Name"] for g in pages("list_grants", "Grants", KeyId=key)] == ["one", "two"]
retirable = kms.list_retirable_grants(RetiringPrincipal=os.environ["RETIRER"])["Grants"]
assert {g["GrantId"] for g in retirable} == {one["GrantId"], two["GrantId"]}, retirable
kms.revoke_grant(KeyId=key, GrantId=one["GrantId"])
kms.retire_grant(GrantToken=two["GrantToken"])
assert kms.list_grants(KeyId=key)["Grants"] == []

kms.enable_key_rotation(KeyId=key)
assert kms.get_key_rotation_status(KeyId=key)["KeyRotationEnabled"] is True
if not lacks("EnableKeyRotation", "RotationPeriodInDays"):
    kms.enable_key_rotation(KeyId=key, RotationPeriodInDays=90)
    assert kms.get_key_rotation_status(KeyId=key)["RotationPeriodInDays"] == 90
kms.disable_key_rotation(KeyId=key)
if not lacks("RotateKeyOnDemand"):
    kms.rotate_key_on_demand(KeyId=key)
if not lacks("ListKeyRotations"):
    assert [r["RotationType"] for r in kms.list_key_rotations(KeyId=key)["Rotations"]] == ["ON_DEMAND"]
if not lacks("Encrypt", "DryRun"):
    refused("DryRunOperationException", kms.encrypt, KeyId=key, Plaintext=b"x", DryRun=True)

assert kms.schedule_key_deletion(KeyId=key, PendingWindowInDays=7)["KeyState"] == "PendingDeletion"
refused("KMSInvalidStateException", kms.decrypt, CiphertextBlob=blob, EncryptionContext=context)
kms.cancel_key_deletion(KeyId=key)


def client(service, access_key, secret, token=None):
    return boto3.client(
        service, endpoint_url=os.environ["URL"], aws_access_key_id=access_key, aws_secret_access_key=secret, aws_session_token=token
    )


sts = client("sts", "AKIAANN", "ann")
assert sts.get_caller_identity()["Arn"] == "arn:aws:iam::111122223333:user/ann"
try:
    sts.assume_role(RoleArn=os.environ["ROLE"], RoleSessionName="boto")
    raise AssertionError("assumed without the ExternalId")
except ClientError as e:
    assert e.response["Error"]["Code"] == "AccessDenied", e
    assert e.response["ResponseMetadata"]["HTTPStatusCode"] == 403, e
    assert e.response["ResponseMetadata"]["RequestId"], e
session = sts.assume_role(RoleArn=os.environ["ROLE"], RoleSessionName="boto", ExternalId="tenant-4711", DurationSeconds=900)
assert session["AssumedRoleUser"]["Arn"] == "arn:aws:sts::111122223333:assumed-role/app/boto", session
temporary = [session["Credentials"][k] for k in ("AccessKeyId", "SecretAccessKey", "SessionToken")]
assert client("sts", *temporary).get_caller_identity()["UserId"] == session["AssumedRoleUser"]["AssumedRoleId"]
client("kms", *temporary).list_keys()

-- What a domain's calls and jobs ask of its grants, past those that have ended: which
-- are live, what may exist at KMS under an epoch, when the last one there ended that
-- somebody may have used, and what came to nothing. They have the columns that a
-- question without a row in its answer needs, or SQLite would walk the primary key.

-- +goose NO TRANSACTION
-- +goose Up
set lock_timeout = 0;
drop index concurrently if exists domain_grant_live;
create index concurrently domain_grant_live on domain_grant (domain_uid, grant_id) where state in ('CREATING', 'ACTIVE');
drop index concurrently if exists kms_grant_open;
create index concurrently kms_grant_open on kms_grant (domain_uid, key_epoch, kind, worker, state) where state not in ('RETIRED', 'FAILED', 'GONE');
drop index concurrently if exists kms_grant_used;
create index concurrently kms_grant_used on kms_grant (domain_uid, key_epoch, kind, end_time, worker) where state <> 'FAILED' or kms_grant_id <> '';
drop index concurrently if exists kms_grant_failed;
create index concurrently kms_grant_failed on kms_grant (domain_uid, key_epoch, grant_uid) where state = 'FAILED';
reset lock_timeout;

-- What workers and replicas ask of open jobs again and again, however many there
-- are: which has waited longest for a worker, which have some, and which of a
-- priority are due. What two of them index changes when a worker takes a shard or gives
-- it back, not with each commit.

-- +goose NO TRANSACTION
-- +goose Up
set lock_timeout = 0;
drop index concurrently if exists job_moving;
create index concurrently job_moving on job (priority, worked_time, create_time, domain_uid, job_id) where state = 'RUNNING' and (phase = 'REENCRYPTING' or kind = 'VERIFY' and phase <> 'PREPARING');
drop index concurrently if exists job_due;
create index concurrently job_due on job (priority, create_time, domain_uid, job_id) where state in ('RUNNING', 'PAUSED', 'BLOCKED');
drop index concurrently if exists shard_held;
create index concurrently shard_held on shard (domain_uid, job_id) where lease_owner <> '';
reset lock_timeout;

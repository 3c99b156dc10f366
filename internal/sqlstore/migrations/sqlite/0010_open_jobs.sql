-- What workers and replicas ask of open jobs again and again, however many there
-- are: which has waited longest for a worker, which have some, and which of a
-- priority are due. What two of them index changes when a worker takes a shard or gives
-- it back, not with each commit.

-- +goose Up
create index job_moving on job (priority, worked_time, create_time, domain_uid, job_id) where state = 'RUNNING' and (phase = 'REENCRYPTING' or kind = 'VERIFY' and phase <> 'PREPARING');
create index job_due on job (priority, create_time, domain_uid, job_id) where state in ('RUNNING', 'PAUSED', 'BLOCKED');
create index shard_held on shard (domain_uid, job_id) where lease_owner <> '';

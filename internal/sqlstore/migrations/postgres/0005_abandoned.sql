-- The data keys that were given up, which stay where they are for good: a report
-- counts them under keys whose other rows it need not look for any more. Without
-- the epoch, or every move would have to change an index.

-- +goose NO TRANSACTION
-- +goose Up
set lock_timeout = 0;
drop index concurrently if exists data_key_abandoned;
create index concurrently data_key_abandoned on data_key (domain_uid) where abandoned = true;
reset lock_timeout;

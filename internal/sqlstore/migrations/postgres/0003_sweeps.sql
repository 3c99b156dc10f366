-- What the sweeps look for: grants that were never made, and requests that may be
-- forgotten, finished or not. The new index on requests serves the programs that
-- know the old one, too.

-- +goose Up
create index domain_grant_creating on domain_grant (create_time) where state = 'CREATING';
create index request_until on request (until_time);
drop index request_forgettable;

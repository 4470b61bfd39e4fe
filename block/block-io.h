/*
 * block-io.h - what a node carries for block-io.c
 *
 * Layer:     block/, private
 * Threading: main thread, before the first and after the last request.
 */
#ifndef BLOCK_BLOCK_IO_H
#define BLOCK_BLOCK_IO_H

#include "block/block-driver.h"

/* bdrv_io_attach - check the limits that the driver has filled in and prepare node->io; -ENOMEM */
int bdrv_io_attach(BlockNode *node) NONNULL(1) WARN_UNUSED;
void bdrv_io_detach(BlockNode *node) NONNULL(1);

#endif

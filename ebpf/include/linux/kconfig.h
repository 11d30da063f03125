/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * BCC includes this first, before any of its own text, and everything else from the headers of the running kernel,
 * which hosts of containers rarely have. So this tree stands in for them: the types come from linux-libc-dev.
 */
#pragma once
#define CONFIG_BPF_SYSCALL 1

#include <linux/types.h>

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s8 s8;
typedef __s16 s16;
typedef __s32 s32;
typedef __s64 s64;
typedef __SIZE_TYPE__ size_t;
typedef __UINTPTR_TYPE__ uintptr_t;
typedef _Bool bool;
#define true 1
#define false 0
